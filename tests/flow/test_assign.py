"""A place changes its role under load: what is in flight ends exactly right, nothing is lost."""

import asyncio
import random

import pytest

from cluster.host import InstanceSpec
from cluster.local import LocalHost
from router.answer import Final
from tests.flow.drawn import parts, picture, words
from tests.flow.harness import Flow, config, flow
from tests.patience import PATIENCE_S
from triptych.core.errors import ConfigError, Unavailable
from triptych.core.lifecycle import InstanceState, Role, Stage
from triptych.core.request import Picture, Request

ENCODE: Role = frozenset({Stage.ENCODE})
PREFILL: Role = frozenset({Stage.PREFILL})
DECODE: Role = frozenset({Stage.DECODE})
PREFILL_DECODE = PREFILL | DECODE


async def asked(flow: Flow, request: Request) -> tuple[list[int], Final]:
    found: list[int] = []
    async for part in flow.stream(request):
        if isinstance(part, Final):
            return found, part
        found += [token.id for token in part.tokens]
    raise AssertionError("an answer has an end")


def drawn(flow: Flow, rng: random.Random, max_tokens: int) -> Request:
    shared: list[str | Picture] = [words(rng, 10, 20), picture(rng)]
    return flow.request(parts(rng, rng.choice([0, 1, 2]), shared), max_tokens=max_tokens)


def roles(flow: Flow) -> dict[str, str]:
    return {
        view.description.id: "".join(stage.letter for stage in view.description.role)
        for view in flow.core.dispatcher.view().instances
    }


@pytest.mark.parametrize(
    ("topology", "place", "role", "drain_s"),
    [
        ("E2,P2,D2", "decode-0", PREFILL, None),
        ("E2,P2,D2", "prefill-1", DECODE, None),
        ("E2,P2,D2", "encode-0", PREFILL_DECODE, None),
        ("E2,P2,D2", "decode-1", ENCODE, 0.0),
        ("E1,P2,D1", "prefill-0", DECODE, 0.0),
        ("E1,PD2", "pd-0", ENCODE, None),
    ],
)
async def test_a_switch_under_load_costs_no_token(topology, place, role, drain_s):
    """Requests that were there before, during and after it: tokens are the oracle's."""
    rng = random.Random(f"assign {topology} {place} {drain_s}")
    async with flow(config(topology)) as running:
        requests = [drawn(running, rng, rng.randint(20, 120)) for _ in range(24)]
        asking = []
        for number, request in enumerate(requests):
            if number == 8:
                switching = asyncio.create_task(running.cluster.assign(place, role, drain_s))
            asking.append(asyncio.create_task(asked(running, request)))
            await asyncio.sleep(0.02)
        answers = await asyncio.gather(*asking)
        async with asyncio.timeout(PATIENCE_S):
            instance = await switching
            while instance not in roles(running):
                await asyncio.sleep(0.01)
        assert instance == f"{place}@1"
        assert roles(running)[instance] == "".join(s.letter for s in Stage if s in role)
        assert f"{place}@0" not in roles(running)
        for request, (tokens, _) in zip(requests, answers, strict=True):
            assert tokens == await running.oracle_answer(request)
        later = [drawn(running, rng, 8) for _ in range(12)]
        for request in later:
            tokens, final = await asked(running, request)
            assert tokens == await running.oracle_answer(request)
            assert final.timeline.attempts == 1


async def test_routers_know_of_it_before_the_first_refusal():
    """From the call on nothing is sent to the place, and what it has ends there."""
    rng = random.Random("drain first")
    async with flow(config("E1,P1,D2")) as running:
        asking = [asyncio.create_task(asked(running, drawn(running, rng, 200))) for _ in range(6)]
        while not any(view.num_jobs["decode"] for view in at(running, "decode-0")):
            await asyncio.sleep(0.01)
        switching = asyncio.create_task(running.cluster.assign("decode-0", PREFILL))
        await asyncio.sleep(0)
        assert [view.state for view in at(running, "decode-0")] == [InstanceState.DRAINING]
        _, final = await asked(running, drawn(running, rng, 5))
        assert final.timeline.attempts == 1
        assert "decode-0@0" not in final.timeline.route
        answers = await asyncio.gather(*asking)
        assert all(final.timeline.attempts == 1 for _, final in answers)
        assert await switching == "decode-0@1"


def at(flow: Flow, place: str):
    views = flow.core.dispatcher.view().instances
    return [view for view in views if view.description.id.startswith(place)]


async def test_what_cannot_be_is_refused_and_changes_nothing():
    async with flow(config("E1,P1,D2")) as running:
        cluster, before = running.cluster, running.cluster.view()
        with pytest.raises(Unavailable, match="prefill-0 is the only one ready to prefill"):
            await cluster.assign("prefill-0", DECODE)
        with pytest.raises(Unavailable, match="encode-0 is the only one ready to encode"):
            await cluster.assign("encode-0", DECODE)
        with pytest.raises(ConfigError, match="'decode-7' is not one of encode-0, prefill-0"):
            await cluster.assign("decode-7", ENCODE)
        assert await cluster.assign("decode-0", DECODE) == "decode-0@0"
        assert cluster.view() == before
        first = asyncio.create_task(cluster.assign("decode-0", PREFILL))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="decode-0 does not serve just now"):
            await cluster.assign("decode-0", ENCODE)
        with pytest.raises(Unavailable, match="decode-1 is the only one ready to decode"):
            await cluster.assign("decode-1", PREFILL)
        assert await first == "decode-0@1"
        assert await cluster.assign("prefill-0", ENCODE) == "prefill-0@1"


class Picky(LocalHost):
    """Cannot start one more encoder."""

    async def start(self, spec: InstanceSpec):
        if spec.role == (Stage.ENCODE,) and not spec.id.endswith("@0"):
            raise RuntimeError("no room for another encoder")
        return await super().start(spec)


async def test_a_role_that_does_not_start_is_taken_back():
    async with flow(config("E1,P1,D2"), Picky("auto")) as running:
        with pytest.raises(Unavailable, match="no room for another encoder"):
            await running.cluster.assign("decode-0", ENCODE)
        async with asyncio.timeout(PATIENCE_S):
            while roles(running).get("decode-0@2") != "D":
                await asyncio.sleep(0.02)
        assert running.cluster.is_whole
