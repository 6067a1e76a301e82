"""Encoded pictures to pixels of the size that their place in the prompt asks for, a bounded number
at a time. Knows the pool of decoding children and nothing of engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from triptych.core.errors import Overloaded
from triptych.core.handoff import EncodeJob


class Decoders(Protocol):
    """``inputs.decode.DecoderPool``, as far as encoding cares."""

    def warm(self) -> None:
        """Get ready, without waiting for it."""
        ...

    async def decode(self, data: bytes, encoding: str, width: int, height: int) -> object:
        """Pixels, uint8 (height, width, 3). Raises RequestError or Unavailable."""
        ...

    async def close(self) -> None:
        """End; pictures in work fail."""
        ...


class Pictures:
    """What waits for a decoding child, or is with one."""

    def __init__(self, pool: Decoders, patch_size: int, max_waiting: int) -> None:
        self._pool = pool
        self._patch_size = patch_size
        self._max_waiting = max_waiting
        self._num_decoding = 0

    def check_room(self) -> None:
        """Raise Overloaded if too many pictures wait already."""
        if self._num_decoding >= self._max_waiting:
            raise Overloaded(f"{self._num_decoding} pictures wait to be decoded")

    async def decode(self, job: EncodeJob) -> object:
        """Pixels, uint8 (height, width, 3), of the job's picture at the size of its grid. Raises
        RequestError if it cannot be decoded within the limits."""
        _, rows, columns = job.item.grid
        width, height = columns * self._patch_size, rows * self._patch_size
        with self.waiting():
            return await self._pool.decode(job.data, job.format, width, height)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A picture whose encoded bytes are kept meanwhile; it counts like one being decoded."""
        self._num_decoding += 1
        try:
            yield
        finally:
            self._num_decoding -= 1

    async def close(self) -> None:
        """End the children; pictures in work fail."""
        await self._pool.close()
