"""What comes with the tokens: choices, stop strings, usage, timeline, SLO counters.

On the oracle, whose tokens are bytes, so that texts are known as well as tokens.
"""

import random

import msgspec
import pytest

from router.answer import Delta, Final
from tests.flow.drawn import picture
from tests.flow.harness import Flow, config, flow
from triptych.core.metrics import slo_class
from triptych.core.request import Request, Sampling, Slo

TOPOLOGIES = ("EPD1", "E1,P1,D1")
QUESTION = "what is on the left of this picture, and what is on its right? "


async def answer(running: Flow, request: Request) -> tuple[list[Delta], Final]:
    """All deltas and the final word."""
    parts = [part async for part in running.stream(request)]
    assert isinstance(parts[-1], Final)
    assert all(isinstance(part, Delta) for part in parts[:-1])
    return parts[:-1], parts[-1]


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_every_choice_is_drawn_with_its_own_seed(topology: str):
    async with flow(config(topology)) as running:
        sampling = Sampling(temperature=1.0, seed=5)
        request = running.request([QUESTION], sampling=sampling, num_choices=3, max_tokens=20)
        deltas, final = await answer(running, request)
        found = [
            [token.id for delta in deltas if delta.choice == choice for token in delta.tokens]
            for choice in range(3)
        ]
        assert found == [await running.oracle_answer(request, choice) for choice in range(3)]
        assert len({tuple(tokens) for tokens in found}) == 3
        assert final.usage.completion_tokens == 60


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_a_stop_string_cuts_the_text_and_ends_the_work(topology: str):
    async with flow(config(topology)) as running:
        plain = running.request([QUESTION], max_tokens=200, sampling=Sampling(temperature=1.0))
        whole = "".join(delta.text for delta in (await answer(running, plain))[0])
        stop = next(whole[at : at + 2] for at in range(60, 120) if whole[at : at + 2].isascii())
        request = running.request(
            [QUESTION], max_tokens=200, sampling=Sampling(temperature=1.0), strings=(stop,)
        )
        deltas, final = await answer(running, request)
        assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
        assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
        assert final.usage.completion_tokens < 200


@pytest.mark.parametrize("prefix", ["true", "false"])
async def test_a_prefix_is_computed_once_unless_told_otherwise(prefix: str):
    async with flow(config("E1,P1,D1", f"cache.prefix={prefix}")) as running:
        parts = [QUESTION * 2, picture(random.Random(1)), QUESTION]
        finals = []
        for _ in range(2):
            request = running.request(parts)
            deltas, final = await answer(running, request)
            tokens = [token.id for delta in deltas for token in delta.tokens]
            assert tokens == await running.oracle_answer(request)
            finals.append(final)
        assert finals[0].usage.cached_tokens == 0
        assert finals[0].usage.image_tokens > 0
        expected = (finals[0].usage.prompt_tokens - 1) // 16 * 16 if prefix == "true" else 0
        assert finals[1].usage.cached_tokens == expected


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_the_timeline_has_the_parts_that_the_request_had(topology: str):
    async with flow(config(topology, "transfer.guard_s=60")) as running:
        with_picture = [picture(random.Random(2), 100), QUESTION]
        times = (await answer(running, running.request(with_picture)))[1].timeline
        plain = (await answer(running, running.request([QUESTION])))[1].timeline
    assert times.encode_s > 0 and times.prefill_s > 0
    assert (plain.encode_s, plain.encode_transfer_s) == (0.0, 0.0)
    assert (times.kv_transfer_s > 0) == (topology == "E1,P1,D1")
    assert times.encode_transfer_s >= times.encode_s, "prefill waited for the picture"
    for each in (times, plain):
        assert 0 < each.ttft_s <= each.total_s
        assert each.prefill_s < each.ttft_s
        assert each.attempts == 1
    assert len(times.route) == (1 if topology == "EPD1" else 3)
    assert len(plain.route) == (1 if topology == "EPD1" else 2)


async def test_the_time_from_the_ticket_on_counts():
    async with flow(config("EPD1")) as running:
        service, request = running.core.service, running.request([QUESTION])
        ticket = service.admit(request.tenant)
        ticket.taken_s -= 1.5  # so long the body took to come
        final = [part async for part in service.generate(request, ticket)][-1]
    assert 1.5 < final.timeline.ttft_s <= final.timeline.total_s
    assert final.timeline.queue_s > 1.5


async def test_slos_are_counted_as_they_were_met():
    async with flow(config("EPD1")) as running:
        for slo in (slo_class("interactive", 0), Slo("custom", 1e-9, None)):
            request = msgspec.structs.replace(running.request([QUESTION]), slo=slo)
            await answer(running, request)
        text = running.core.service.metrics().decode()
    met = 'triptych_router_slo_requests_total{attained="true",slo="interactive"} 1.0'
    missed = 'triptych_router_slo_requests_total{attained="false",slo="custom"} 1.0'
    assert met in text
    assert missed in text
    assert 'triptych_router_requests_total{outcome="completed"} 2.0' in text
    assert "triptych_router_ttft_seconds_count 2.0" in text
    assert 'triptych_cluster_instances{role="EPD"} 1.0' in text
