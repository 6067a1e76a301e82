"""A device's blocks and their copy on the host, which transfers read and write.

Copies are made in a stream beside the one that computes: a layer leaves while later ones are
computed. Knows bytes and streams; no owners, no layout but how many parts a block has.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.executor.device import stream_beside


class _Copied(NamedTuple):
    """Something to be done behind a copy."""

    event: Any
    """torch.cuda.Event; None where copies are made at once."""
    then: Callable[[], None]


class Mirror:
    """``device`` and ``host`` are uint8 (blocks, shards, layers, bytes), ``device`` contiguous and
    ``host`` too, or some shards of memory that is; ``host`` is pinned where ``device`` is a GPU's.
    """

    def __init__(self, device: Tensor, host: Tensor, *, follows: bool = True) -> None:
        """``follows``: whether a copy down is behind what is queued in the caller's stream; else
        whoever asks for it has waited for that."""
        self._follows = follows
        self._device, self._host = device, host
        beside = stream_beside(device.device)
        self._stream = None if beside is None else beside.stream
        self._copied: queue.Queue[_Copied | None] = queue.Queue()
        self._teller: threading.Thread | None = None
        self._fault: Exception | None = None

    def down(
        self,
        blocks: Sequence[int],
        layers: range | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Copy ``blocks``, or ``layers`` (of step 1) of them, to the host, behind what is queued in
        the current stream. Returns when they are there; with ``then`` at once, which is called in
        another thread when they are, in the order of calls. See ``settle``."""
        with self._beside(follows=self._follows) as event:
            for part in self._parts(blocks, layers):
                self._host[part].copy_(self._device[part], non_blocking=True)
        if then is None:
            self._copied.join()
            if event is not None:
                event.synchronize()
        else:
            self._tell(_Copied(event, then))

    def up(self, blocks: Sequence[int]) -> None:
        """Copy whole ``blocks`` to the device, and return when they are there: a late copy would
        undo what comes behind it in another stream."""
        with self._beside(follows=False) as event:
            for part in self._parts(blocks, None):
                self._device[part].copy_(self._host[part], non_blocking=True)
        if event is not None:
            event.synchronize()

    def settle(self) -> None:
        """Return when everything is told that was to be told. Raises what one of ``then`` raised,
        once; those behind it were not called. For the thread that computes: nobody else hears of
        it."""
        self._copied.join()
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def close(self) -> None:
        """End the thread, behind what is to be told. Idempotent."""
        if self._teller is not None:
            self._copied.put(None)
            self._teller.join()
            self._teller = None

    @contextmanager
    def _beside(self, *, follows: bool) -> Iterator[Any]:
        """In the stream for copies, behind what is queued in the current one if it ``follows``;
        gives an event that is recorded behind what is queued inside, None where there are no
        streams."""
        if self._stream is None:
            yield None
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device.device):
            if follows:
                self._stream.wait_stream(torch.cuda.current_stream(self._device.device))
            with torch.cuda.stream(self._stream):
                yield event
                event.record(self._stream)

    def _parts(self, blocks: Sequence[int], layers: range | None) -> Iterator[Any]:
        """Indices whose bytes lie side by side on both sides: one copy each, and no memory between.
        Neighbouring blocks are one."""
        _, num_shards, num_layers, _ = self._device.shape
        is_part = layers is not None and len(layers) < num_layers
        if is_part or not self._host.is_contiguous():
            span = slice(None) if layers is None else slice(layers.start, layers.stop)
            for block in blocks:
                yield from ((block, shard, span) for shard in range(num_shards))
            return
        first = 0
        for index in range(1, len(blocks) + 1):
            if index == len(blocks) or blocks[index] != blocks[index - 1] + 1:
                yield slice(blocks[first], blocks[index - 1] + 1)
                first = index

    def _tell(self, copied: _Copied) -> None:
        if self._teller is None:
            self._teller = threading.Thread(target=self._run, name="mirror", daemon=True)
            self._teller.start()
        self._copied.put(copied)

    def _run(self) -> None:
        while (copied := self._copied.get()) is not None:
            try:
                if copied.event is not None:
                    copied.event.synchronize()
                if self._fault is None:
                    copied.then()
            except Exception as error:  # noqa: BLE001 - raised in settle
                self._fault = error
            finally:
                self._copied.task_done()
        self._copied.task_done()
