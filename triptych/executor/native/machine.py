"""Operations done at once, some in one call, or recorded as a program to be walked again and again.

Knows tensors as addresses and sizes, and that a recorded one must stay where it is.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.executor.native.arena import Arena
from triptych.executor.native.library import KINDS, Library, Operation

_READABLE = (torch.float32, torch.int64, torch.int32, torch.uint8)
_NUMBER = {name: number for number, name in enumerate(KINDS)}


class Program:
    """A recorded step: its operations, and all memory that they read and write."""

    def __init__(self, library: Library, threads: int) -> None:
        self._library = library
        self._threads = threads
        self._noted: list[Operation] = []
        self._held: list[Tensor] = []
        self._operations = (Operation * 0)()

    def note(self, operation: Operation, held: list[Tensor]) -> None:
        """One more operation, and the tensors whose addresses it has."""
        self._noted.append(operation)
        self._held += held

    def close(self) -> None:
        """Nothing more is noted."""
        self._operations = (Operation * len(self._noted))(*self._noted)
        self._noted.clear()

    def run(self, rows: int) -> None:
        """All of it, for the first ``rows`` rows of what was recorded; 0: for all."""
        self._library.run(self._operations, rows, self._threads)


class Machine:
    """Does operations for the layers of one model, in whatever thread, helped by others where cores
    are idle: ``threads`` in all."""

    def __init__(self, library: Library, threads: int = 1) -> None:
        self._library = library
        self._threads = threads
        self._here = threading.local()
        self.panel = library.panel
        """See ``Library``."""
        self.arena = Arena()
        """For weights."""

    def do(
        self, kind: str, rows: int, out: Tensor | int, reads: tuple[Tensor | int | None, ...],
        number: float = 0.0, **sizes: int,
    ) -> None:  # fmt: skip
        """Do ``kind`` now, or note it if this thread records or puts together. ``reads`` are ``a``,
        ``b``, ...; whole numbers are addresses. Raises InvariantBroken if a tensor's numbers are
        not side by side."""
        operation = Operation(kind=_NUMBER[kind], rows=rows, number=number, **sizes)
        operation.out = _address(out)
        for name, one in zip("abcd", reads, strict=False):
            setattr(operation, name, _address(one))
        program: Program | None = getattr(self._here, "program", None)
        if program is None:
            one_only = (Operation * 1)(operation)
            self._library.run(one_only, 0, self._threads)
        else:
            program.note(operation, [one for one in (out, *reads) if isinstance(one, Tensor)])

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread does inside is done at its end, in one call: others that need Python's
        lock get it once and not between any two operations. Until then outputs are memory without
        meaning, but for ``settle``. Inside ``recording``, nothing of its own."""
        if getattr(self._here, "program", None) is not None:
            yield
            return
        self._here.program, self._here.is_put_together = Program(self._library, self._threads), True
        try:
            yield
            self.settle()
        finally:
            self._here.program, self._here.is_put_together = None, False

    def settle(self) -> None:
        """Do now what this thread has put together so far: somebody else reads it."""
        if getattr(self._here, "is_put_together", False):
            noted: Program = self._here.program
            self._here.program = Program(self._library, self._threads)
            noted.close()
            noted.run(0)

    @contextmanager
    def recording(self) -> Iterator[Program]:
        """What this thread does inside is noted and not done; outputs are memory without meaning
        until the program runs. Whatever is not one of our operations would be left out."""
        if getattr(self._here, "program", None) is not None:
            raise InvariantBroken("what is put together cannot be recorded")
        program = Program(self._library, self._threads)
        self._here.program = program
        try:
            yield program
        finally:
            self._here.program = None
        program.close()


def _address(one: Tensor | int | None) -> int | None:
    if not isinstance(one, Tensor):
        return one
    if not one.is_contiguous() or one.dtype not in _READABLE:
        raise InvariantBroken("a native operation was given numbers it cannot read")
    return one.data_ptr()
