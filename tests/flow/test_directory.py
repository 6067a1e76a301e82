"""Two instances of every stage that share what they cache, by each kind of directory: hits across
instances, exact tokens, and a directory's server that dies in the middle and costs misses only."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest

from router.journey import Trip, journey
from tests.cluster.redis_server import RedisServer, redis_server
from tests.flow.drawn import picture, words
from tests.flow.harness import PUBLIC, Flow, config, flow
from tests.flow.test_conversation import Sent, keep_priors
from tests.flow.told import agreement, catalog, told
from tests.patience import PATIENCE_S
from triptych.core.handoff import EncodeJob, LendJob
from triptych.core.hashing import tenant_salt
from triptych.core.lifecycle import RequestState
from triptych.core.request import Picture, Prompt
from triptych.executor.models.oracle_reference import oracle_reference
from triptych.inputs.oracle_words import PATCH_SIZE

TOPOLOGY = "E2,P2,D2"
SERVERS = ["redis", "valkey"]
MAX_TOKENS = 900


class Document:
    """Words and pictures, as a prompt that grows by questions and answers."""

    def __init__(self, pictures: tuple[Picture, ...], prompt: Prompt, pixels: list[Any]) -> None:
        self.pictures = pictures
        self.pixels = pixels
        self.prompt = self._beginning = prompt

    def grow(self, prompt: Prompt, answer: Sequence[int]) -> None:
        """Go on from an answer; begin anew when it becomes long."""
        ids = (*prompt.token_ids, *answer)
        self.prompt = Prompt(ids, prompt.items) if len(ids) < MAX_TOKENS else self._beginning


class Readers:
    """Asks about a few documents, again and again, and counts what was found where."""

    def __init__(self, running: Flow, rng: random.Random) -> None:
        self._running = running
        self._rng = rng
        self._salt = tenant_salt(running.core.secret, PUBLIC)
        self.documents: list[Document] = []
        self.seen: Counter[str] = Counter()

    async def open(self, number: int) -> None:
        """Bring so many new documents."""
        rng, running = self._rng, self._running
        for _ in range(number):
            pictures = picture(rng), picture(rng)
            request = running.request([words(rng), pictures[0], words(rng), pictures[1]])
            prompt = running.core.service.prompts.expand(
                request.messages, request.pictures, self._salt
            )
            pixels = [
                await running._decoder.decode(
                    one.data, one.format, item.grid[2] * PATCH_SIZE, item.grid[1] * PATCH_SIZE
                )
                for item, one in zip(prompt.items, pictures, strict=True)
            ]
            self.documents.append(Document(pictures, prompt, pixels))

    async def ask(self) -> None:
        """One question about one document; its answer must be exact."""
        rng, core = self._rng, self._running.core
        document = rng.choice(self.documents)
        asked = tuple(rng.randrange(256) for _ in range(rng.randint(3, 60)))
        prompt = Prompt((*document.prompt.token_ids, *asked), document.prompt.items)
        request = self._running.request(document.pictures, max_tokens=rng.randint(10, 40))
        trip = Trip(request, prompt, 0, self._salt)
        core.ledger.accept(request.id, request.tenant)
        async with aclosing(journey(trip, core.stages)) as tokens:
            found = [token.id async for some in tokens for token in some]
        core.ledger.close(request.id, RequestState.COMPLETED)
        assert found == list(
            oracle_reference(prompt, document.pixels, request.sampling, request.stop, self._salt)
        )
        self._count(trip)
        document.grow(prompt, found)

    def _count(self, trip: Trip) -> None:
        assert trip.route is not None
        cached, lent = trip.timings["prefill"].cached_tokens, trip.route.prefix
        self.seen.update(
            requests=1,
            pictures=len(trip.prompt.items),
            cached_tokens=cached,
            across=lent is not None and cached >= lent.num_tokens,
            repeated=trip.attempts - 1,
        )
        self.seen.update(trip.tally)

    async def rounds(self, number: int, at_once: int = 4) -> None:
        """Questions, some at once; whatever came of them is told before the next."""
        for _ in range(number):
            await asyncio.gather(*(self.ask() for _ in range(at_once)))
            await told(self._running)

    @asynccontextmanager
    async def stream(self, at_once: int = 4) -> AsyncIterator[None]:
        """Questions without a pause while the body runs. None of them may fail."""
        is_over = asyncio.Event()

        async def reader() -> None:
            while not is_over.is_set():
                await self.ask()

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(reader())
            try:
                yield
            finally:
                is_over.set()

    async def more(self, number: int, what: str = "requests") -> None:
        """Wait, beside a stream, until so many more were seen."""
        enough = self.seen[what] + number
        async with asyncio.timeout(PATIENCE_S):
            while self.seen[what] < enough:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def cluster(kind: str) -> AsyncIterator[tuple[Flow, Readers, RedisServer | None]]:
    """Pools that share by a directory of ``kind``."""
    async with AsyncExitStack() as stack:
        server, url = None, kind
        if kind != "embedded":
            server = await stack.enter_async_context(redis_server(kind))
            url = server.url
        settings = config(TOPOLOGY, f'cluster.directory="{url}"')
        running = await stack.enter_async_context(flow(settings))
        keep_priors(running)
        readers = Readers(running, random.Random(f"directory {kind}"))
        await readers.open(3)
        yield running, readers, server


@pytest.mark.parametrize("kind", ["embedded", *SERVERS])
async def test_what_one_has_the_others_use(kind: str) -> None:
    async with cluster(kind) as (running, readers, _):
        await agreement(running)
        sent = Sent(running)
        await readers.rounds(6)
        await agreement(running)
        seen = readers.seen
        print(f"{kind}: {dict(seen)}, loans {sent.jobs[LendJob]}, encodes {sent.jobs[EncodeJob]}")
        assert seen["across"] > 4, "instances had KV that they never computed"
        assert sent.jobs[LendJob] == seen["prefix_fetches"] > 0
        assert 6 <= seen["computed"] <= sent.jobs[EncodeJob] < seen["pictures"]
        assert seen["computed"] < seen["pictures"] / 4, "and encoders find most of what is left"
        await running.assert_idle()


@pytest.mark.parametrize("kind", SERVERS)
async def test_its_server_dies_in_the_middle(kind: str) -> None:
    async with cluster(kind) as (running, readers, server):
        assert server is not None
        async with readers.stream():
            await readers.more(20, "kv_hits")
            await server.kill()
            await readers.more(40)
            while any(catalog(running)._shelves):
                await readers.more(1)
            away = Counter(readers.seen)
            await readers.more(20)
            assert readers.seen["kv_hits"] - away["kv_hits"] <= 4, "nothing was known meanwhile"
            await server.start()
            back_s = time.monotonic()
            await readers.more(1, "kv_hits")
            hit_s = time.monotonic() - back_s
            await readers.more(20, "kv_hits")
        await agreement(running)
        busy_s = time.monotonic() - back_s

        await server.kill()  # and once more while nobody has anything to tell
        async with asyncio.timeout(PATIENCE_S):
            while any(catalog(running)._shelves):
                await asyncio.sleep(0.01)
        await server.start()
        back_s = time.monotonic()
        await agreement(running)
        quiet_s = time.monotonic() - back_s
        before = Counter(readers.seen)
        await readers.open(1)
        await readers.rounds(4)
        assert readers.seen["kv_hits"] > before["kv_hits"]
        assert readers.seen["across"] > before["across"]
        print(
            f"{kind}: {dict(readers.seen)}; after the restart the first hit came in {hit_s:.2f} s, "
            f"agreement in {busy_s:.2f} s (busy) and {quiet_s:.2f} s (quiet)"
        )
        await running.assert_idle()
