"""Event streams: batching, heartbeats, broken readers, bounds."""

import asyncio

import pytest

from triptych.core.errors import RequestError, Unavailable
from triptych.core.event import Encoded, EventBatch, Failed, Timing, Token, Tokens
from triptych.wire import sessions as module
from triptych.wire.sessions import Sessions


def tokens(job, *numbers):
    return Tokens(job, tuple(Token(number, number) for number in numbers))


@pytest.fixture
def broken():
    return []


@pytest.fixture
def sessions(broken):
    return Sessions(0.05, broken.append)


async def test_one_turn_is_one_batch(sessions):
    stream = sessions.stream("s")
    assert await anext(stream) == EventBatch()
    assert sessions.join("s", "a")
    assert not sessions.join("s", "a")
    sessions.join("s", "b")
    for event in (tokens("a", 0), tokens("b", 0), tokens("a", 1)):
        sessions.emit(event)
    assert (await anext(stream)).events == (tokens("a", 0), tokens("b", 0), tokens("a", 1))
    assert await anext(stream) == EventBatch()  # a heartbeat
    await stream.aclose()


async def test_the_end_of_a_job_takes_it_off_its_session(sessions, broken):
    stream = sessions.stream("s")
    await anext(stream)
    sessions.join("s", "a")
    sessions.emit(Encoded("a", Timing()))
    sessions.emit(tokens("a", 1))
    assert sessions.num_jobs == 0
    assert (await anext(stream)).events == (Encoded("a", Timing()),)
    sessions.join("s", "b")
    sessions.leave("b")
    sessions.emit(Failed("b", "internal", ""))
    assert (await anext(stream)).events == ()
    await stream.aclose()
    assert broken == ["s"]


async def test_jobs_need_an_open_session_and_names_are_unique(sessions, broken):
    with pytest.raises(Unavailable):
        sessions.join("s", "a")
    stream = sessions.stream("s")
    await anext(stream)
    with pytest.raises(RequestError):
        await anext(sessions.stream("s"))
    sessions.join("s", "a")
    await stream.aclose()
    assert broken == ["s"]
    assert (sessions.num_jobs, len(sessions)) == (0, 0)


async def test_what_was_said_before_the_end_is_heard_also_by_who_was_still_reading(sessions):
    """The instance closes once nothing is at work; the last words came while the batch before them
    was on its way."""
    stream = sessions.stream("s")
    await anext(stream)  # and it is being written
    sessions.join("s", "a")
    sessions.emit(Encoded("a", Timing()))
    sessions.close()
    assert (await anext(stream)).events == (Encoded("a", Timing()),)
    with pytest.raises(Unavailable):
        await anext(stream)


async def test_a_reader_that_does_not_read_is_cut_off(sessions, broken, monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING", 3)
    stream = sessions.stream("s")
    await anext(stream)
    sessions.join("s", "a")
    for number in range(9):
        sessions.emit(tokens("a", number))
    assert broken == ["s"]
    with pytest.raises(Unavailable):
        await anext(stream)
    assert len(sessions) == 0


async def test_close_ends_every_reader(sessions, broken):
    async def read(name):
        async for _ in sessions.stream(name):
            pass

    readers = [asyncio.create_task(read(name)) for name in ("a", "b")]
    await asyncio.sleep(0)
    sessions.close()
    for reader in readers:
        with pytest.raises(Unavailable):
            await reader
    assert sorted(broken) == ["a", "b"]
