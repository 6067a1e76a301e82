"""Gloo under another name that keeps NCCL's rules, so that a machine without GPU tests that way."""

import os

from torch import distributed

NAME = "ncclsim"


class Strict:
    """Point to point as NCCL has it: no tags, one tensor a call, bytes in a row, one peer."""

    def __init__(self, store, rank, size, timeout) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        assert size == 2
        self._rank = rank
        self._group = distributed.ProcessGroupGloo(store, rank, size, timeout)
        self._store = store
        self._count = 0

    def send(self, tensors, peer, tag):
        self._store.set(f"message {self._count}", str(self._check(tensors, peer, tag)))
        self._count += 1
        return self._group.send(tensors, peer, 0)

    def recv(self, tensors, peer, tag):
        length = self._check(tensors, peer, tag)
        assert int(self._store.get(f"message {self._count}")) == length, "another message is due"
        self._count += 1
        return self._group.recv(tensors, peer, 0)

    def _check(self, tensors, peer, tag) -> int:
        assert tag == 0
        assert peer == 1 - self._rank
        assert len(tensors) == 1
        assert tensors[0].is_contiguous()
        return tensors[0].numel()

    def abort(self) -> None:
        self._group.abort()


def register() -> None:
    """Idempotent."""
    if NAME.upper() not in distributed.Backend._plugins:
        distributed.Backend.register_backend(NAME, Strict, devices=["cpu"])
