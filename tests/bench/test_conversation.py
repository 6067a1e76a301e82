"""The conversation bench: what it asks, what it reads off the server, what it prints and draws."""

import json

import msgspec
import pytest

from bench import conversation, plots
from bench.chat import Ending, ask
from bench.conversation import Plan, Row, Turn
from bench.systems import TriptychServer
from tests.bench.test_client import DONE, OK, event, server, tokens
from tests.patience import PATIENCE_S

USAGE = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
LAST = {"choices": [], "usage": USAGE, "triptych": {"timeline_ms": {"ttft": 3.5}, "route": ["p"]}}


def turn(ttft_s: float, answer: str = "yes") -> Turn:
    return Turn(ttft_s, 20, 16, 3, 0, answer)


async def test_a_reply_carries_text_times_and_the_servers_account(no_leak):
    seen: list[dict] = []
    pieces = (OK, tokens(1), tokens(2, 3), event(LAST), DONE)
    async with server(*pieces, pause_s=0.02, seen=seen) as target:
        reply = await ask(target, [{"role": "user", "content": "Hi"}], Ending(7))
    assert reply.text == "xx"
    assert len(reply.token_times_s) == 3
    assert 0 < reply.ttft_s < reply.token_times_s[1] == reply.token_times_s[2]
    assert (reply.prompt_tokens, reply.cached_tokens, reply.route) == (9, 4, ("p",))
    assert reply.timeline_ms == {"ttft": 3.5}
    assert seen[0]["max_tokens"] == 7
    assert seen[0]["stream_options"] == {"include_usage": True}
    assert seen[0]["ignore_eos"] is False


async def test_an_answer_without_tokens_is_an_error(no_leak):
    async with server(OK, event(LAST), DONE) as target:
        with pytest.raises(ValueError, match="without tokens"):
            await ask(target, [], Ending(1))


def test_the_table_shows_medians_and_spread():
    row = Row("cached", 2, (turn(0.010), turn(0.030), turn(0.011)))
    assert conversation.table([row]).splitlines()[-1] == (
        "| 2 | cached | 11.0 (10.0-30.0) | 20 | 16 | 3 | 0 |"
    )


def test_different_answers_are_noticed():
    one, two = Row("a", 1, (turn(0.1),)), Row("b", 1, (turn(0.1, "no"),))
    assert conversation.is_same([one, msgspec.structs.replace(one, system="b")])
    assert not conversation.is_same([one, two])


def test_pictures_are_new_in_every_repetition():
    plan = Plan(side=56)
    assert plan.opening(0) == plan.opening(0) != plan.opening(1)
    assert len(plan.opening(0)) == 3
    assert len(json.dumps(plan.opening(0)[0])) > 100


def test_the_picture_is_drawn(tmp_path):
    rows = [Row(name, n, (turn(0.01 * n),)) for n in (1, 2) for name in ("a", "b")]
    plots.draw_lines(conversation.panels(rows), tmp_path / "c.png", "two turns")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
async def test_a_real_server_reuses_what_it_said_before():
    plan = Plan(num_turns=3, num_pictures=2, side=84, max_tokens=4, repetitions=1)
    settings = ["cluster.backend=process"]
    servers = {
        word: TriptychServer("oracle", "E1,P1,D1", [*settings, f"cache.prefix={word}"], PATIENCE_S)
        for word in ("true", "false")
    }
    rows = await conversation.measure(servers, plan)
    found = {(row.system, row.turn): row.runs[0] for row in rows}
    assert len(found) == 6
    assert found["true", 1].num_encoded == 2
    for number in (2, 3):
        assert found["true", number].num_encoded == 0
        assert found["true", number].cached_tokens >= found["true", number - 1].prompt_tokens - 16
        assert found["false", number].cached_tokens == 0
