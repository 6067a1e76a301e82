"""What servers of others lack is made good: the end mark, and fields that they refuse."""

import asyncio
import json
from itertools import count

import pytest

from bench.client import Target
from bench.live.turns import Ask, Turn
from bench.peers.sender import UNKNOWN_TO_TRANSFORMERS, PeerSender
from tests.bench.test_client import DONE, OK, event, server, tokens

LAST = event({"choices": [{"delta": {}, "finish_reason": "length"}],
              "usage": {"prompt_tokens": 9, "completion_tokens": 2}})  # fmt: skip
END = b"0\r\n\r\n"
ASK = Ask((Turn("user", (b"png", "What is it?")),), 2)


async def sent(target, left_out=()):
    sender = PeerSender(target, left_out)
    counted = []
    answer = await sender.send(sender.prepare(ASK), counted.append)
    return sender, counted, answer


@pytest.mark.parametrize("end", [DONE, END], ids=["marked", "as transformers ends"])
async def test_an_answer_that_says_why_it_ended_is_whole(end):
    async with server(OK, tokens(1), tokens(2), LAST, end) as target:
        sender, counted, answer = await sent(target)
    assert counted == [1, 1]
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("xx", 9, 2)
    assert sender.texts == {"What is it?": "xx"}


async def test_an_answer_that_breaks_off_is_none():
    async with server(OK, tokens(1), END) as target:
        with pytest.raises(EOFError):
            await sent(target)


@pytest.mark.parametrize("left_out", [(), UNKNOWN_TO_TRANSFORMERS])
async def test_all_servers_get_the_same_but_what_they_refuse(left_out):
    seen = []
    async with server(OK, tokens(1), LAST, DONE, seen=seen) as target:
        await sent(target, left_out)
    (body,) = seen
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (2, 0, True)
    assert set(UNKNOWN_TO_TRANSFORMERS) - body.keys() == set(left_out)


async def test_the_name_of_the_model_is_asked_for():
    listing = json.dumps({"data": [{"id": "small"}]}).encode()
    numbers = count()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(listing)

    async def answer(reader, writer):
        next(numbers)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + listing)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        sender = PeerSender(Target("127.0.0.1", port, ""))
        await sender.start()
        await sender.start()
    assert next(numbers) == 1, "once"
    assert json.loads(sender.prepare(ASK).body)["model"] == "small"
