"""The memory of blocks: one tensor of ``(num_blocks * layout.num_shards, *layout.shape)``.

On a CPU it lies in an anonymous memfd that a peer on the same host may map; nothing of it outlives
the process. Knows bytes and shapes; does not know who owns which block.
"""

import fcntl
import mmap
import os
from collections.abc import Sequence

import torch

from triptych.core.errors import ConfigError
from triptych.core.layout import Layout

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int8": torch.uint8,
    "fp8": torch.uint8,
}
"""What a tensor of a store of ``Layout.dtype`` holds; of codes, bytes."""


class BlockStore:
    """Blocks of one layout. Implements ``core.ports.BlockMemory``.

    ``tensor`` has the shape ``(num_blocks * layout.num_shards, *layout.shape)``: the run of shard
    ``s`` of block ``b`` is ``b * layout.num_shards + s``. ``view`` are the same bytes on a CPU.
    On a GPU ``view`` is a pinned host copy: ``stage`` fills its blocks from the device before they
    are sent, ``absorb`` carries received blocks to the device. ``fd`` is a descriptor of another
    process's store of the same layout, which is mapped then and not made. Raises ConfigError that
    names ``setting`` when the machine has no room.
    """

    def __init__(
        self,
        layout: Layout,
        num_blocks: int,
        *,
        device: str = "cpu",
        setting: str = "num_blocks",
        fd: int = -1,
    ) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.num_bytes = num_blocks * layout.block_bytes
        self.fd = -1
        self._host: torch.Tensor | None = None
        _check_room(self.num_bytes, setting)
        shape = (num_blocks * layout.num_shards, *layout.shape)
        try:
            if torch.device(device).type == "cpu":
                self.fd = fd if fd >= 0 else _create(layout.kind, self.num_bytes)
                memory = _map(self.fd, self.num_bytes)
                self.view = memoryview(memory)
                flat = torch.frombuffer(memory, dtype=DTYPES[layout.dtype])
                self.tensor = flat.view(shape)
            else:
                self.tensor = torch.zeros(shape, dtype=DTYPES[layout.dtype], device=device)
                host = torch.zeros(self.num_bytes, dtype=torch.uint8).pin_memory()
                self._host = host
                self.view = memoryview(host.numpy().data)
        except (OSError, torch.OutOfMemoryError) as error:
            raise ConfigError(f"{setting}: no room for {self.num_bytes} bytes") from error

    def stage(self, blocks: Sequence[int], layers: range | None = None) -> None:
        """Make ``view`` current for ``blocks``, or ``layers`` of them. Does nothing on a CPU, where
        it always is. On a GPU the copy waits for the current stream: a side stream behind an event
        would let later layers go on meanwhile, and is to be written where it can be run."""
        if self._host is not None:
            index = list(blocks)
            span = slice(None) if layers is None else slice(layers.start, layers.stop)
            self._runs(self._host)[index, :, span] = self._runs(self._raw())[index, :, span].cpu()

    def absorb(self, blocks: Sequence[int]) -> None:
        """Make ``tensor`` current for ``blocks`` written through ``view``. Nothing on a CPU."""
        if self._host is not None:
            index = list(blocks)
            self._raw()[index] = self._staging(self._host)[index].to(self.tensor.device)
            # Pictures are written in another stream: a late copy would undo what came behind it.
            torch.cuda.current_stream(self.tensor.device).synchronize()

    def close(self) -> None:
        """Give the memory back. Idempotent; ``tensor`` and ``view`` are gone after it.

        Pages that somebody still refers to live until the last reference is dropped.
        """
        self.tensor = torch.empty(0)
        self._host = None
        self.view = memoryview(b"")
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _raw(self) -> torch.Tensor:
        return self.tensor.view(self.num_blocks, -1).view(torch.uint8)

    def _runs(self, raw: torch.Tensor) -> torch.Tensor:
        """Bytes as (blocks, shards, layers, bytes of a layer)."""
        layout = self.layout
        return raw.view(self.num_blocks, layout.num_shards, layout.num_layers, -1)

    def _staging(self, host: torch.Tensor) -> torch.Tensor:
        return host.view(self.num_blocks, -1)


def _check_room(num_bytes: int, setting: str) -> None:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > installed:
        raise ConfigError(f"{setting}: {num_bytes} bytes do not fit into {installed} of memory")


def _create(kind: str, num_bytes: int) -> int:
    """A sealed memfd: its size is fixed, so a peer cannot pull it from under us."""
    fd = os.memfd_create(f"triptych-{kind}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def _map(fd: int, num_bytes: int) -> mmap.mmap:
    """All of a memfd, pre-faulted."""
    try:
        return mmap.mmap(fd, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except OSError:
        os.close(fd)
        raise
