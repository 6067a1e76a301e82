"""The open-loop client against a small real server on a socket."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

import pytest

from bench.client import Kept, Refused, Target, events, get, open_loop
from bench.workloads import Ask

ASK = Ask((b"png",), "What?", 3)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(value) -> bytes:
    data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def tokens(*ids) -> bytes:
    return event({"choices": [{"delta": {"content": "x"}, "token_ids": list(ids)}]})


DONE = event(b"[DONE]") + b"0\r\n\r\n"


@asynccontextmanager
async def server(*pieces, pause_s=0.0, seen=None):
    handlers = set()

    async def answer(reader, writer):
        handlers.add(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if seen is not None:
            seen.append(json.loads(body))
        with suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    running = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield Target("127.0.0.1", running.sockets[0].getsockname()[1], "demo", 5.0)
    finally:
        running.close()
        await running.wait_closed()
        await asyncio.gather(*handlers)


async def test_tokens_are_counted_by_ids_and_timed_as_they_come(no_leak):
    seen = []
    async with server(OK, tokens(1), tokens(2, 3), DONE, pause_s=0.05, seen=seen) as target:
        (outcome,) = await open_loop(target, [ASK], [0.0])
    first, second, third = outcome.token_times_s
    assert outcome.status == "ok"
    assert first < second == third
    assert 0.03 < second - first < 1.0
    assert seen[0]["ignore_eos"] is True
    assert seen[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")


async def test_an_event_may_be_split_anywhere():
    stream = tokens(1) + tokens(2) + DONE
    async with server(OK[:20], OK[20:] + stream[:9], stream[9:40], stream[40:]) as target:
        (outcome,) = await open_loop(target, [ASK], [0.0])
    assert len(outcome.token_times_s) == 2


async def test_arrivals_do_not_wait_for_answers():
    async with server(OK, tokens(1), DONE, pause_s=0.3) as target:
        outcomes = await open_loop(target, [ASK] * 5, [0.0, 0.01, 0.02, 0.03, 0.04])
    assert [outcome.status for outcome in outcomes] == ["ok"] * 5
    assert max(outcome.token_times_s[0] for outcome in outcomes) < 1.0


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([b"HTTP/1.1 429 No\r\nRetry-After: 1\r\n\r\nfull"], "refused"),
        ([b"HTTP/1.1 503 No\r\n\r\n"], "refused"),
        ([b"HTTP/1.1 400 Bad\r\n\r\n{}"], "failed"),
        ([b""], "failed"),
        ([OK, tokens(1)], "failed"),
        ([OK, tokens(1), event({"error": {"message": "lost"}}), DONE], "failed"),
        ([OK, DONE], "failed"),
    ],
)
async def test_everything_else_is_no_answer(pieces, status):
    async with server(*pieces) as target:
        (outcome,) = await open_loop(target, [ASK], [0.0])
    assert outcome.status == status
    assert outcome.detail


async def test_silence_times_out():
    async with server(OK + tokens(1), pause_s=1.0) as target:
        target = Target(target.host, target.port, "demo", timeout_s=0.2)
        (outcome,) = await open_loop(target, [ASK], [0.0])
    assert outcome.status == "timeout"
    assert len(outcome.token_times_s) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:8000", ("a", 8000, False, "")),
        ("a:8000/v1/", ("a", 8000, False, "")),
        ("https://b/gateway/v1", ("b", 443, True, "/gateway")),
        ("http://b", ("b", 80, False, "")),
    ],
)
def test_addresses(url, expected):
    target = Target.of(url)
    assert (target.host, target.port, target.is_tls, target.prefix) == expected
    assert Target.of(target.url) == target


def test_an_address_that_is_none():
    with pytest.raises(ValueError, match="url"):
        Target.of("ftp://a")


async def test_the_key_is_sent():
    heads = []

    async def answer(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n{}")
        writer.close()

    running = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = running.sockets[0].getsockname()[1]
    async with running:
        target = Target.of(f"http://127.0.0.1:{port}/api", api_key="secret")
        assert await get(target, "/v1/models") == (200, b"{}")
    assert heads[0].startswith(b"GET /api/v1/models ")
    assert b"Authorization: Bearer secret\r\n" in heads[0]


@asynccontextmanager
async def keeping(answers, seen):
    """A server that answers each request with the next of ``answers`` on whatever connection it
    comes; None: it closes the connection behind the answer before, without a word."""
    left = list(answers)
    handlers = set()

    async def serve(reader, writer):
        handlers.add(asyncio.current_task())
        number = len(handlers)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while left and left[0] is not None:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
                seen.append(number)
                writer.write(left.pop(0))
                await writer.drain()
            left[:1] = []
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Target("127.0.0.1", running.sockets[0].getsockname()[1], "demo", 5.0)
    finally:
        running.close()
        await running.wait_closed()
        await asyncio.gather(*handlers)


REFUSAL = b"HTTP/1.1 429 No\r\nContent-Length: 4\r\n\r\nfull"
ANSWER = OK + tokens(1) + DONE


async def ask_all(target, count):
    """Ask one after the other over kept connections; what became of each."""
    kept, found = Kept(), []
    for _ in range(count):
        try:
            found.append([event async for event in events(target, b"{}", kept)])
        except Refused:
            found.append("refused")
        await asyncio.sleep(0.05)
    await kept.close()
    return found


async def test_a_kept_connection_serves_answers_and_refusals(no_leak):
    seen = []
    async with keeping([ANSWER, REFUSAL, ANSWER], seen) as target:
        first, second, third = await ask_all(target, 3)
    assert len(first) == len(third) == 1 and second == "refused"
    assert seen == [1, 1, 1]


async def test_a_kept_connection_that_was_closed_is_opened_anew(no_leak):
    seen = []
    async with keeping([ANSWER, None, ANSWER], seen) as target:
        found = await ask_all(target, 2)
    assert [len(each) for each in found] == [1, 1]
    assert seen == [1, 2]


async def test_a_server_that_dies_behind_a_request_has_failed_and_is_not_asked_again(no_leak):
    seen = []
    async with keeping([ANSWER, b""], seen) as target:
        with pytest.raises((EOFError, ConnectionError)):
            await ask_all(target, 2)
    assert seen == [1, 1]


@pytest.mark.parametrize("last", [b"Connection: close\r\n", b""])
async def test_a_connection_that_ends_with_its_answer_is_not_kept(last, no_leak):
    seen = []
    length = b"Content-Length: 4\r\n" if last else b""
    refusal = b"HTTP/1.1 429 No\r\n" + length + last + b"\r\nfull"
    async with keeping([refusal, None, ANSWER], seen) as target:
        found = await ask_all(target, 2)
    assert found[0] == "refused" and len(found[1]) == 1
    assert seen == [1, 2]
