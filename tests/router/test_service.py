"""A request ends in time, whoever hangs: its reader, its expansion, its stages. Real instances."""

import asyncio
import threading

import pytest

from router.answer import Delta
from tests.flow.harness import PUBLIC, Flow, config, flow
from tests.patience import PATIENCE_S
from triptych.core.errors import DeadlineExceeded
from triptych.core.request import Request

SMALL = ("cache.kv_blocks=64",)


async def until(condition, timeout_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def num_taken(running: Flow) -> int:
    return running.core.service._admission.num_taken


async def test_the_deadline_ends_a_request_that_nobody_reads() -> None:
    async with flow(config("EPD1")) as running:
        request = running.request(["hello"], max_tokens=3000, seconds=0.6)
        answer = running.stream(request)
        first = await anext(answer)
        assert isinstance(first, Delta)
        ledger = running.core.ledger
        await until(lambda: not ledger.num_open)  # while nobody asks for the next delta
        await until(lambda: not num_taken(running))
        await running.assert_idle()
        assert ledger.outcomes == {"deadline_exceeded": 1}
        with pytest.raises(DeadlineExceeded):
            await anext(answer)
        assert ledger.outcomes == {"deadline_exceeded": 1}


async def test_cancel_ends_a_request_that_nobody_reads() -> None:
    async with flow(config("EPD1")) as running:
        request = running.request(["hello"], max_tokens=3000)
        answer = running.stream(request)
        await anext(answer)
        assert await running.core.service.cancel(request.id, PUBLIC)
        assert num_taken(running) == 0
        await running.assert_idle()
        assert running.core.ledger.outcomes == {"cancelled": 1}
        await answer.aclose()
        assert running.core.ledger.outcomes == {"cancelled": 1}


async def test_expansion_that_waits_too_long_is_refused_at_the_deadline() -> None:
    async with flow(config("EPD1")) as running:
        gate = threading.Event()
        blocker = running.core.service._threads.submit(gate.wait, PATIENCE_S)
        try:
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(DeadlineExceeded):
                    await running.tokens(running.request(["hello"], seconds=0.2))
        finally:
            gate.set()
            blocker.result()
        assert num_taken(running) == 0
        assert running.core.ledger.outcomes == {"rejected:deadline_exceeded": 1}


async def test_drain_waits_for_a_request_in_expansion() -> None:
    async with flow(config("EPD1")) as running:
        gate = threading.Event()
        blocker = running.core.service._threads.submit(gate.wait, PATIENCE_S)
        request = running.request(["hello"], max_tokens=5)
        asking = asyncio.create_task(running.tokens(request))
        await until(lambda: num_taken(running) == 1)
        running.core.service.refuse()
        draining = asyncio.create_task(running.core.service.drain(10.0))
        await asyncio.sleep(0.1)
        assert not draining.done()
        gate.set()
        blocker.result()
        assert await draining, "nothing was cut"
        assert await asking == await running.oracle_answer(request)


async def test_drain_cuts_what_is_left_in_the_end() -> None:
    async with flow(config("EPD1")) as running:
        answer = running.stream(running.request(["hello"], max_tokens=3000))
        await anext(answer)
        assert not await running.core.service.drain(0.05)
        assert num_taken(running) == 0
        assert running.core.ledger.outcomes == {"cancelled": 1}
        await answer.aclose()


async def test_output_is_cut_to_what_fits_while_no_decode_instance_is_in_view() -> None:
    async with flow(config("EP1,D1", *SMALL, backend="process")) as running:
        decode = _decoder(running)
        request = running.request(["hello"], max_tokens=4000)
        await running.cluster.kill(decode)
        await until(lambda: decode not in _ids(running))
        found = await running.tokens(request)
        fits = 64 * running.config.cache.block_size
        assert 0 < len(found) < fits
        assert found == (await _expected(running, request, len(found)))


def _ids(running: Flow) -> list[str]:
    return [each.description.id for each in running.core.dispatcher.view().instances]


def _decoder(running: Flow):
    return next(each for each in _ids(running) if each.startswith("decode"))


async def _expected(running: Flow, request: Request, count: int) -> list[int]:
    return await running.oracle_answer(running.request(["hello"], max_tokens=count))
