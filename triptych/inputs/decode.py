"""Pictures to pixels, in child processes that may die of what they are fed.

Knows children, limits and sockets. Does not know Pillow (``decode_child`` does), nor what the
pixels are for. One event loop uses a pool.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triptych.core.config import LimitsConfig
from triptych.core.errors import RequestError, Unavailable
from triptych.inputs import decode_child
from triptych.inputs.header import Header, UnreadableError, read_header

log = logging.getLogger(__name__)

_PROGRAM = str(Path(decode_child.__file__).resolve())
_START_S = 10.0
"""Added to the time of a child's first picture: the interpreter starts, Pillow is imported."""


class _DiedError(Exception):
    """A child is gone without a reply, and not because its time was over."""


class DecoderPool:
    """``limits.decode_workers`` children that decode one picture each at a time.

    Children start with ``warm`` or when they are first needed, from this process's own interpreter
    without a fork of its memory, and end with ``close`` or with this process.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._turns = asyncio.Semaphore(limits.decode_workers)
        """Fair, as a queue of idle children would not be: who asks while one that waited longer is
        being woken would take the child before it."""
        self._idle: list[_Child | None] = [None] * limits.decode_workers
        """The last one is taken next: those that run stand behind those to be started."""
        self._closing = asyncio.Lock()
        self._children: set[_Child] = set()
        self._is_closed = False

    @property
    def num_children(self) -> int:
        """Children that live now."""
        return len(self._children)

    def warm(self) -> None:
        """Start the children that do not run yet, and return at once: they get ready meanwhile, so
        that no picture has to wait for an interpreter. What cannot start now is tried again then.
        """
        for index, child in enumerate(self._idle):
            try:
                if child is None and not self._is_closed:
                    self._idle[index] = self._start()
            except Unavailable as error:
                log.warning("%s", error)

    async def decode(
        self, data: bytes, format_name: str, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Pixels of the picture, upright, scaled to (height, width, 3), uint8.

        Raises RequestError if it cannot be decoded within the limits of memory and time; the child
        is then replaced and no other picture is concerned. A child that dies of something else
        while it works (memory that the machine lacks, a signal) is replaced too, and the next one
        tries once more. Raises Unavailable if no child can be started.
        """
        header = _header(data, format_name)
        shape = (height, width, 3)
        try:
            try:
                result, pixels = await self._exchange(data, header, shape)
            except _DiedError:
                result, pixels = await self._exchange(data, header, shape)
        except (_DiedError, TimeoutError) as error:
            raise RequestError("cannot be decoded within the limits", field="picture") from error
        if result != decode_child.OK:
            is_large = result == decode_child.TOO_LARGE
            text = "needs too much memory to decode" if is_large else "cannot be decoded"
            raise RequestError(text, field="picture", status="too_large" if is_large else "invalid")
        return pixels

    async def close(self) -> None:
        """End all children; pictures in work fail. Idempotent."""
        self._is_closed = True
        for busy in self._children:
            busy.kill()
        async with self._closing:
            for _ in range(self._limits.decode_workers):
                await self._turns.acquire()
            for child in self._idle:
                self._end(child)
            self._idle = [None] * len(self._idle)
            for _ in range(self._limits.decode_workers):
                self._turns.release()

    async def _exchange(
        self, data: bytes, header: Header, shape: tuple[int, int, int]
    ) -> tuple[int, NDArray[np.uint8]]:
        """One try with one child: its result and, if that is OK, the pixels.

        Raises TimeoutError, or _DiedError if the child died of another cause than its time."""
        await self._turns.acquire()
        child = self._idle.pop()
        try:
            if self._is_closed:
                raise Unavailable("the decoder pool is closed")
            if child is None or not child.is_alive:
                self._end(child)
                child = None
                child = self._start()
            pixels = np.empty(shape, np.uint8)
            async with asyncio.timeout(child.start_s + self._limits.decode_timeout_s):
                return await child.exchange(data, header, pixels), pixels
        except (TimeoutError, ConnectionError, EOFError) as error:
            code = self._end(child)
            child = None
            if self._is_closed:
                raise Unavailable("the decoder pool was closed") from error
            if isinstance(error, TimeoutError) or code == -signal.SIGALRM:
                raise TimeoutError from error
            raise _DiedError from error
        except asyncio.CancelledError:
            self._end(child)
            child = None
            raise
        finally:
            self._idle.insert(0 if child is None else len(self._idle), child)
            self._turns.release()

    def _start(self) -> "_Child":
        try:
            child = _Child(self._limits)
        except OSError as error:
            raise Unavailable(f"a decoding child cannot be started: {error}") from error
        self._children.add(child)
        return child

    def _end(self, child: "_Child | None") -> int:
        """The exit code, of its own death if it died before this; 0 for none."""
        if child is None:
            return 0
        self._children.discard(child)
        return child.end()


def _header(data: bytes, format_name: str) -> Header:
    """What the door read already, read again: nobody else's word is taken for it."""
    try:
        header = read_header(data)
    except UnreadableError:
        header = None
    if header is None or header.format != format_name:
        raise RequestError("is not a readable picture", field="picture")
    return header


class _Child:
    """One child and its socket."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self.start_s = _START_S
        arguments = (os.getpid(), limits.decode_memory_bytes, limits.decode_timeout_s)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", _PROGRAM, *map(str, arguments)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()

    async def exchange(self, data: bytes, header: Header, pixels: NDArray[np.uint8]) -> int:
        """Send one picture; fill ``pixels`` if the result is OK."""
        loop = asyncio.get_running_loop()
        height, width, _ = pixels.shape
        head = decode_child.REQUEST.pack(
            header.format.encode(),
            header.orientation,
            header.width,
            header.height,
            width,
            height,
            len(data),
        )
        await loop.sock_sendall(self._socket, head)
        await loop.sock_sendall(self._socket, data)
        reply = bytearray(decode_child.REPLY.size)
        await self._fill(memoryview(reply))
        result, size = decode_child.REPLY.unpack(reply)
        if size != (pixels.nbytes if result == decode_child.OK else 0):
            raise EOFError("a decoding child broke the protocol")
        if size:
            await self._fill(pixels.data.cast("B"))
        self.start_s = 0.0
        return int(result)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended, by whatever cause."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Whoever waits for this child then reads the end of its stream."""
        self._process.kill()

    def end(self) -> int:
        """Kill and reap; a killed process ends within milliseconds. Its exit code."""
        self._socket.close()
        self._process.kill()
        return self._process.wait()

    async def _fill(self, view: memoryview) -> None:
        loop = asyncio.get_running_loop()
        while view:
            count = await loop.sock_recv_into(self._socket, view)
            if count == 0:
                raise EOFError("a decoding child is gone")
            view = view[count:]
