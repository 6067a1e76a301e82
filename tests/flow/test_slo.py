"""Placement and admission by predictions on the real path: right tokens, typed refusals."""

import asyncio
import random

import msgspec
import pytest

from router.answer import Final
from scheduler.lengths import BUCKET_TOKENS
from tests.flow.drawn import picture, words
from tests.flow.harness import PUBLIC, Flow, config, flow
from triptych.core.errors import ConfigError, Overloaded
from triptych.core.ids import TenantId
from triptych.core.request import Request, Slo

SETTINGS = ('router.placement="slo"', 'admission.policy="slo"')
LAX = Slo("custom", 30.0, 5.0)
NEVER = Slo("custom", 1e-9, 1e-9)


def bounded(request: Request, slo: Slo) -> Request:
    return msgspec.structs.replace(request, slo=slo)


@pytest.mark.parametrize("topology", ["EPD1", "E1,P1,D1", "E2,PD1,P1,D2"])
@pytest.mark.parametrize("placement", ["slo", "modality"])
async def test_oracle(topology: str, placement: str) -> None:
    rng = random.Random(f"slo {topology}")
    settings = (f'router.placement="{placement}"', SETTINGS[1])
    async with flow(config(topology, *settings)) as running:
        requests = []
        for number in range(8):
            parts = [words(rng), *(picture(rng) for _ in range(number % 3)), words(rng)]
            request = running.request(parts, tenant=TenantId(f"t{number % 2}"))
            requests.append(bounded(request, LAX))
        answers = await asyncio.gather(*(running.tokens(each) for each in requests))
        for request, answer in zip(requests, answers, strict=True):
            assert answer == await running.oracle_answer(request)


async def test_what_can_never_be_kept_is_served_alone_and_refused_in_company() -> None:
    async with flow(config("EPD1", *SETTINGS)) as running:
        alone = bounded(running.request(["hello"]), NEVER)
        assert await running.tokens(alone) == await running.oracle_answer(alone)
        company = running.stream(running.request(["hi"], max_tokens=3000))
        await anext(company)
        with pytest.raises(Overloaded) as refusal:
            await running.tokens(bounded(running.request(["hello"]), NEVER))
        assert refusal.value.retry_after_s == 60.0, "no time is enough, so the longest is said"
        degradable = msgspec.structs.replace(NEVER, may_degrade=True)
        served = bounded(running.request(["hello"]), degradable)
        assert await running.tokens(served) == await running.oracle_answer(served)
        assert (await _final(running, bounded(running.request(["x"]), degradable))).is_degraded
        await company.aclose()
        assert running.core.ledger.outcomes["rejected:overloaded"] == 1


async def test_predictions_are_learnt_and_their_error_is_kept() -> None:
    async with flow(config("E1,P1,D1", *SETTINGS)) as running:
        rng = random.Random(1)
        for _ in range(12):
            await running.tokens(bounded(running.request([words(rng), picture(rng)]), LAX))
        lengths = running.core.stages.knowledge.forecast.lengths
        assert lengths.predict(PUBLIC, 40, 1, 1000) == (12, BUCKET_TOKENS)
        errors = running.core.stages.knowledge.forecast.errors()
        assert errors["ttft"].count == errors["tpot"].count == 12
        assert errors["encode_step"].count and errors["language_step"].count >= 24
        text = running.core.service.metrics().decode()
        assert 'triptych_router_prediction_error_ratio{kind="mape",what="ttft"}' in text


async def test_a_request_that_waits_for_its_turn_can_be_cancelled() -> None:
    settings = (*SETTINGS, "admission.horizon_s=1e-9", "engine.max_sequences=1")
    async with flow(config("EPD1", *settings)) as running:
        first = running.stream(running.request(["hello"], max_tokens=3000))
        await anext(first)
        request = running.request(["hello"])
        waiting = asyncio.create_task(running.tokens(request))
        gate = running.core.service._gate
        async with asyncio.timeout(5):
            while not gate.num_waiting:
                await asyncio.sleep(0.01)
        assert not await running.core.service.cancel(request.id, TenantId("other"))
        assert await running.core.service.cancel(request.id, request.tenant)
        with pytest.raises(Exception, match="cancel"):
            await waiting
        await first.aclose()
        assert gate.num_waiting == 0


async def _final(running: Flow, request: Request) -> Final:
    async for part in running.stream(request):
        if isinstance(part, Final):
            return part.timeline
    raise AssertionError("no end")


async def test_a_profile_that_cannot_be_read_is_named(tmp_path) -> None:
    broken = tmp_path / "profile.json"
    for text, word in [(None, "No such file"), ("{}", "router.profile")]:
        if text is not None:
            broken.write_text(text)
        with pytest.raises(ConfigError, match=word):
            async with flow(config("EPD1", f'router.profile="{broken}"')):
                pass
