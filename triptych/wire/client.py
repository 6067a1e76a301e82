"""An instance behind a gRPC channel: ``core.ports.Instance`` for one that another process hosts.

Knows the stage API and turns silence and broken connections into InstanceLost. Knows no pool, no
restart and no routing.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc
import msgspec

from triptych.core.census import Census
from triptych.core.errors import Cancelled, DeadlineExceeded, InstanceLost, TriptychError
from triptych.core.event import EventBatch
from triptych.core.handoff import EncodeJob, Job, LendJob
from triptych.core.ids import JobId, SessionId
from triptych.core.view import Description
from triptych.v1 import stage_pb2 as pb
from triptych.v1 import stage_pb2_grpc
from triptych.wire import auth, convert
from triptych.wire.status import from_grpc

T = TypeVar("T")


class ClientOptions(msgspec.Struct, frozen=True):
    """How to reach an instance and how long to believe in it."""

    secret: bytes
    timeout_s: float = 5.0
    """Silence on a session, and the bound on a single call, after which the instance is lost. Only
    time in which our own event loop ran is counted."""
    max_message_bytes: int = 20_971_520


_CLOSED = "the connection to the instance is closed"


class RemoteInstance:
    """One instance at ``address`` (``host:port``)."""

    def __init__(self, address: str, options: ClientOptions) -> None:
        self._options = options
        self._num_open = 0
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        self._metadata = ((auth.METADATA_KEY, auth.token(options.secret)),)
        self._channel = grpc.aio.insecure_channel(
            address,
            options=(
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
                ("grpc.enable_retries", 0),
                ("grpc.max_send_message_length", options.max_message_bytes),
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", round(options.timeout_s * 1000)),
            ),
        )
        self._encoder = stage_pb2_grpc.EncoderStub(self._channel)  # type: ignore[no-untyped-call]
        self._prefill = stage_pb2_grpc.PrefillStub(self._channel)  # type: ignore[no-untyped-call]
        self._decode = stage_pb2_grpc.DecodeStub(self._channel)  # type: ignore[no-untyped-call]
        self._instance = stage_pb2_grpc.InstanceStub(self._channel)  # type: ignore[no-untyped-call]

    async def describe(self) -> Description:
        """What the instance says of itself."""
        message = await self._call(self._instance.Describe, pb.DescribeRequest())
        return convert.decode_description(message)

    async def open(self, session: SessionId) -> AsyncGenerator[EventBatch, None]:
        """The session's batches; the first one says that it is open, and jobs may follow.

        Raises InstanceLost when the stream breaks, ends or is silent for ``timeout_s``."""
        try:
            call = self._instance.Open(pb.OpenRequest(session=session), metadata=self._metadata)
            self._num_open += 1
            self._all_ended.clear()
            silence = _Silence(self._options.timeout_s, call.cancel)
            try:
                while True:
                    message = await _read(call, silence)
                    if message is grpc.aio.EOF:
                        raise InstanceLost("the instance ended the session")
                    yield convert.decode_batch(message)
            finally:
                silence.close()
                call.cancel()
                self._num_open -= 1
                if self._num_open == 0:
                    self._all_ended.set()
        except grpc.aio.AioRpcError as error:
            raise _meaning(error) from error
        except grpc.aio.UsageError as error:
            raise InstanceLost(_CLOSED) from error

    async def submit(self, job: Job) -> None:
        """Send a job to the service of its stage. Raises what the instance refused it with."""
        if isinstance(job, EncodeJob):
            await self._call(self._encoder.Encode, convert.encode_encode_job(job))
            return
        if isinstance(job, LendJob):
            await self._call(self._instance.Lend, convert.encode_lend_job(job))
            return
        method = self._decode.Decode if job.publish is None else self._prefill.Prefill
        await self._call(method, convert.encode_language_job(job))

    async def resync(self, session: SessionId) -> None:
        """Have the session hear of all caches again."""
        await self._call(self._instance.Resync, pb.ResyncRequest(session=session))

    async def cancel(self, jobs: Sequence[JobId]) -> None:
        """End the jobs; returns when they hold nothing at the instance."""
        await self._call(self._instance.Cancel, pb.CancelRequest(jobs=jobs))

    async def census(self) -> Census:
        """Who holds what at the instance."""
        return convert.decode_census(await self._call(self._instance.Census, pb.CensusRequest()))

    async def drain(self, timeout_s: float) -> bool:
        """Let the instance finish what it has, at most ``timeout_s``."""
        request = pb.DrainRequest(timeout_s=timeout_s)
        message: pb.DrainResponse = await self._call(self._instance.Drain, request, timeout_s)
        return message.is_idle

    async def ended(self, limit_s: float) -> None:
        """Return when every open session has ended, or after ``limit_s``: an instance that is gone
        may have said more than its readers have heard yet, and closing the channel drops that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._all_ended.wait()

    async def close(self) -> None:
        """Close the channel; open sessions and calls in flight end with InstanceLost."""
        await self._channel.close()

    async def _call(self, method: Any, message: Any, more_s: float = 0.0) -> Any:
        """One unary call; a call that outlives its timeout means a lost instance."""
        try:
            call = method(message, metadata=self._metadata)
            return await self._within(self._options.timeout_s + more_s, call)
        except TimeoutError as error:
            raise InstanceLost("the instance does not answer") from error
        except grpc.aio.AioRpcError as error:
            raise _meaning(error) from error
        except grpc.aio.UsageError as error:
            raise InstanceLost(_CLOSED) from error

    async def _within(self, timeout_s: float, answer: Awaitable[T]) -> T:
        """``answer``, or TimeoutError once this loop has waited for it for ``timeout_s``.

        A loop that stood still (SIGSTOP, a paused machine) has waited for one step at most: what
        arrived meanwhile is read before anybody is called dead. An ``answer`` that somebody else
        cancels means InstanceLost: a channel that is closed cancels all that hangs on it."""
        loop, step_s, waited_s = asyncio.get_running_loop(), timeout_s / 10, 0.0
        waiting = asyncio.ensure_future(answer)
        waiting.add_done_callback(_look)
        try:
            while waited_s < timeout_s:
                begun_s = loop.time()
                await asyncio.wait((waiting,), timeout=step_s)
                if waiting.cancelled():
                    raise InstanceLost(_CLOSED)
                if waiting.done():
                    return waiting.result()
                waited_s += min(loop.time() - begun_s, 2 * step_s)
            raise TimeoutError
        finally:
            waiting.cancel()


class _Silence:
    """Calls ``on_end`` once this loop has waited for ``timeout_s`` without a word, as ``_within``
    counts; one timer for a whole session, which is looked at ten times in that while."""

    def __init__(self, timeout_s: float, on_end: Callable[[], object]) -> None:
        self.is_over = False
        self.waited_s = 0.0
        """Set it to 0 whenever something was heard."""
        self._timeout_s, self._step_s, self._on_end = timeout_s, timeout_s / 10, on_end
        self._loop = asyncio.get_running_loop()
        self._begun_s = self._loop.time()
        self._timer = self._loop.call_later(self._step_s, self._look)

    def close(self) -> None:
        """Nobody listens any more."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        self.waited_s += min(now - self._begun_s, 2 * self._step_s)
        self._begun_s = now
        if self.waited_s >= self._timeout_s:
            self.is_over = True
            self._on_end()
        else:
            self._timer = self._loop.call_later(self._step_s, self._look)


async def _read(call: Any, silence: _Silence) -> Any:
    """The next message. Raises InstanceLost if none came in time, or if the channel was closed,
    which cancels all that hangs on it; cancelled itself, it is cancelled."""
    try:
        message = await call.read()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        reason = "the instance is silent" if silence.is_over else _CLOSED
        raise InstanceLost(reason) from None
    silence.waited_s = 0.0
    return message


def _look(waited: asyncio.Future[Any]) -> None:
    """An error that comes when nobody waits any more is no news."""
    if not waited.cancelled():
        waited.exception()


def _meaning(error: grpc.aio.AioRpcError) -> TriptychError:
    """What an instance meant; a call that gRPC itself ended means that the instance is lost."""
    meaning = from_grpc(error)
    if isinstance(meaning, DeadlineExceeded):
        return InstanceLost("the instance does not answer")
    if isinstance(meaning, Cancelled):
        return InstanceLost("the instance stopped serving")
    return meaning
