"""Whatever the order in which pictures and KV arrive, the answer is the same.

On the oracle the same tokens, which are known; on the demo model with ``engine.deterministic`` the
very same bits of every log-probability and of every key and value. Chunks are cut by the prompt, so
what is computed together never depends on who was late.
"""

import asyncio
import itertools
import random
from collections.abc import Coroutine, Sequence

import pytest
import torch

from router.answer import Final
from scheduler.registry import policies
from tests import checkpoints
from tests.engine.scripted import make_job
from tests.executor.driver import Driver, Sequence_, executors, scene
from tests.flow.drawn import picture, words
from tests.flow.harness import Flow, config, flow
from tests.flow.late import Delays, delay
from triptych.cache.kv import KvCache
from triptych.core.config import EngineConfig
from triptych.core.event import Token
from triptych.core.ids import JobId
from triptych.core.request import Picture, Request, Sampling, StopRule
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Drew, Ended, Outcome, Reserved
from triptych.executor.models.oracle_reference import oracle_reference

PIECES = [5, (3, 5), 7, (2, 2), (4, 3), 21, (1, 6), 9]
NUM_PICTURES = 4
ORDERS = list(itertools.permutations(range(NUM_PICTURES)))
STEPS_BETWEEN = (0, 1, 99)
"""Steps that the engine makes, at most, before the next picture comes."""
CHUNKS = [16, 37, 4096]
CASES = [("oracle", 1, 257), ("oracle", 2, 257), ("demo", 1, 690), ("demo", 2, 690)]
WITH_LOGPROBS = Sampling(logprobs=20)


class Kitchen:
    """One language engine over real executors, whose pictures are handed to it one by one."""

    def __init__(self, sequence: Sequence_, chunk: int, *, deterministic: bool) -> None:
        self._driver = driver = sequence.driver
        self._executor = driver.executors.language
        memory = self._executor.memory
        settings = EngineConfig(
            chunk_tokens=chunk, token_budget=2 * chunk, deterministic=deterministic
        )
        cache = KvCache(memory.num_blocks, memory.layout.block_size, "model", prefix=False)
        self.engine = LanguageEngine(
            settings, cache, policies(settings), recomputes_items=True, max_tokens=4096
        )
        self.sequence = sequence
        self.tokens: list[Token] = []
        self.kv: torch.Tensor | None = None
        prompt = sequence.scene.prompt
        job = make_job("a", prompt.token_ids, items=prompt.items, sampling=WITH_LOGPROBS)
        self.engine.submit(job, 0.0)
        self.engine.submit(make_job("neighbour", range(60), max_tokens=12), 0.0)

    def step(self, count: int) -> None:
        """At most ``count`` steps."""
        for _ in range(count):
            step = self.engine.plan(0.0)
            if step is None or not step.jobs:
                return
            self.hear(step.outcomes)
            self.hear(self.engine.apply(step, self._executor.execute(step.plan), 0.0))

    def hear(self, outcomes: Sequence[Outcome]) -> None:
        """Keep what was drawn, and the prompt's keys and values before others get their blocks."""
        for said in outcomes:
            match said:
                case Reserved("a", blocks):
                    self.sequence.blocks = list(blocks)
                    self.sequence.computed = len(self.sequence.scene.prompt)
                case Drew("a", token):
                    self.tokens.append(token)
                case Ended("a"):
                    self.kv = self._driver.kv(self.sequence).clone()

    def serve(self, order: Sequence[int], between: int) -> tuple[list[Token], torch.Tensor]:
        """The answer, and the keys and values of the prompt, when pictures come in ``order``."""
        for index in order:
            self.step(between)
            self.engine.item_ready(JobId("a"), index, self.sequence.item_blocks[index])
        self.step(999)
        assert self.engine.is_idle
        self.engine.check()
        assert self.kv is not None
        return self.tokens, self.kv


def lateness(chunk: int, *, is_full: bool) -> list[tuple[tuple[int, ...], int]]:
    """Orders and steps between pictures: all, or so few that over all chunks each order meets
    each number of steps once."""
    if is_full:
        return list(itertools.product(ORDERS, STEPS_BETWEEN))
    start = CHUNKS.index(chunk)
    turns = [STEPS_BETWEEN[(start + number) % len(STEPS_BETWEEN)] for number in range(len(ORDERS))]
    return list(zip(ORDERS, turns, strict=True))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("kind", "num_ranks", "image_token"), CASES)
def test_every_order_of_four_pictures(kind: str, num_ranks: int, image_token: int, chunk: int):
    one = scene(random.Random(chunk), PIECES, image_token)
    path = checkpoints.DEMO if kind == "demo" else kind
    made = executors(path, num_ranks=num_ranks)
    encoded = Driver(made).add(one)
    tokens, kv = None, torch.empty(0)
    for order, between in lateness(chunk, is_full=kind == "oracle"):
        kitchen = Kitchen(encoded, chunk, deterministic=kind == "demo")
        other_tokens, other_kv = kitchen.serve(order, between)
        if tokens is None:
            tokens, kv = other_tokens, other_kv
        assert other_tokens == tokens
        assert other_kv.equal(kv)
    if kind == "oracle":
        judged = oracle_reference(one.prompt, one.pixels, WITH_LOGPROBS, StopRule(5))
        assert [token.id for token in tokens] == list(judged)
    made.close()


Parts = list[str | Picture]
Answer = tuple[list[Token], Final]


def prompts(seed: int, number: int) -> list[Parts]:
    """Prompts of one to five pictures of very different sizes, some of them the same."""
    rng = random.Random(seed)
    common = [words(rng, 10, 20), picture(rng, 60, 140)]
    found: list[Parts] = []
    for index in range(number):
        one: Parts = list(common) if index % 3 == 0 else []
        for _ in range(1 + index % 4):
            one += [words(rng, 1, 9), picture(rng, 28, rng.choice([60, 180]))]
        found.append([*one, words(rng, 2, 25)])
    return found


async def answer(running: Flow, request: Request) -> Answer:
    """Every token as it was drawn, and the final word."""
    found: list[Token] = []
    async for part in running.stream(request):
        if isinstance(part, Final):
            return found, part
        found += part.tokens
    raise AssertionError("no final word")


async def answers(running: Flow, asked: Sequence[Parts]) -> list[Answer]:
    """All at once."""
    requests = [running.request(parts, sampling=WITH_LOGPROBS) for parts in asked]
    return await asyncio.gather(*(answer(running, request) for request in requests))


async def check_oracle(running: Flow, asked: Sequence[Parts], found: Sequence[Answer]) -> None:
    """Every token is the only right one."""
    for parts, (tokens, _) in zip(asked, found, strict=True):
        expected = await running.oracle_answer(running.request(parts, sampling=WITH_LOGPROBS))
        assert [token.id for token in tokens] == expected


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("topology", ["E2,P1,D1", "E2,P2,D2", "EP2,D1", "EPD2"])
async def test_late_pictures_on_the_oracle(topology: str, chunk: int, monkeypatch):
    asked = prompts(chunk, 12)
    orders = set()
    for seed in range(2):
        delays = Delays(seed, 0.03)
        delay(monkeypatch, delays)
        settings = (
            f"engine.chunk_tokens={chunk}",
            f"engine.token_budget={max(chunk, 64)}",
            "engine.image_budget_tokens=1",
            f"engine.overlap={'true' if seed else 'false'}",
            f"model.tensor_parallel={1 + seed}",
        )
        async with flow(config(topology, *settings)) as running:
            await check_oracle(running, asked, await answers(running, asked))
        orders.add(tuple(delays.order))
    assert len(orders) == 2, "the delays changed nothing"


DETERMINISTIC = (
    "engine.deterministic=true",
    "engine.chunk_tokens=32",
    'model.dtype="float32"',
)


@pytest.fixture(scope="module")
def judged() -> list[list[Token]]:
    """The demo model's answers, one after the other on one instance where nothing is late."""

    async def ask() -> list[list[Token]]:
        settings = config("EPD1", *DETERMINISTIC, model=str(checkpoints.DEMO))
        async with flow(settings) as running:
            return [(await answers(running, [parts]))[0][0] for parts in prompts(1, 8)]

    return asyncio.run(ask())


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize("topology", ["E2,P1,D1", "E2,P2,D2", "EP2,D1", "EPD2"])
async def test_late_pictures_give_the_same_bits(topology, overlap, judged, monkeypatch):
    orders = set()
    for seed in range(2):
        delays = Delays(seed, 0.05)
        delay(monkeypatch, delays)
        settings = (*DETERMINISTIC, f"engine.overlap={overlap}")
        async with flow(config(topology, *settings, model=str(checkpoints.DEMO))) as running:
            found = await answers(running, prompts(1, 8))
        assert [tokens for tokens, _ in found] == judged
        orders.add(tuple(delays.order))
    assert len(orders) == 2, "the delays changed nothing"


async def disturb(delays: Delays, fault: Coroutine[None, None, None]) -> None:
    """Begin ``fault`` when some pictures are encoded; the others go on only then."""
    while not delays.is_paused:
        await asyncio.sleep(0.002)
    happening = asyncio.create_task(fault)
    await asyncio.sleep(0.02)
    delays.go_on()
    await happening


async def end_encode_jobs(running: Flow, request: Request) -> None:
    """End all encode jobs of the request's first attempt."""
    jobs = [JobId(f"{request.id}/0/0/encode{index}") for index in range(len(request.pictures))]
    for view in running.cluster.view().instances:
        if view.description.id.startswith("encode"):
            await running.cluster.instance(view.description.id).cancel(jobs)


async def lose(running: Flow, role: str) -> None:
    """Kill the instance of a role that works for most requests."""
    views = running.core.dispatcher.view().instances
    busy = [view for view in views if view.description.id.startswith(role)]
    await running.cluster.kill(max(busy, key=lambda view: view.num_jobs[role]).description.id)


@pytest.mark.parametrize("model", ["oracle", pytest.param("demo", marks=pytest.mark.slow)])
async def test_encode_jobs_that_are_ended_come_again(model: str, judged, monkeypatch):
    parts = prompts(1, 8)[3]
    delays = Delays(1, 0.05, pause_after=1)
    delay(monkeypatch, delays)
    path = str(checkpoints.DEMO) if model == "demo" else model
    settings = (*DETERMINISTIC, "engine.image_budget_tokens=1")
    async with flow(config("E2,P1,D1", *settings, model=path)) as running:
        request = running.request(parts, sampling=WITH_LOGPROBS)
        asking = asyncio.create_task(answer(running, request))
        await disturb(delays, end_encode_jobs(running, request))
        found = [await asking]
        assert found[0][1].timeline.attempts == 2
        if model == "demo":
            assert found[0][0] == judged[3]
        else:
            await check_oracle(running, [parts], found)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["encode", "prefill", "decode"])
@pytest.mark.parametrize("model", ["oracle", "demo"])
async def test_instances_that_are_lost_change_nothing(model: str, role: str, judged, monkeypatch):
    asked = prompts(1, 8)
    delays = Delays(7, 0.05, pause_after=5)
    delay(monkeypatch, delays)
    path = str(checkpoints.DEMO) if model == "demo" else model
    async with flow(config("E2,P2,D2", *DETERMINISTIC, model=path)) as running:
        asking = asyncio.create_task(answers(running, asked))
        await disturb(delays, lose(running, role))
        found = await asking
        if model == "demo":
            assert [tokens for tokens, _ in found] == judged
        else:
            await check_oracle(running, asked, found)
        assert any(final.timeline.attempts > 1 for _, final in found), "nobody noticed"
