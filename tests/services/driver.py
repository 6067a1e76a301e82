"""A tiny driver of jobs: what a router does for one request, in the fewest lines, without retries.

Used by tests of services and hosts. Pictures are drawn from a seed; expected tokens come from the
oracle's naive reference.
"""

import asyncio
import io
import itertools
import random
import secrets
from contextlib import aclosing, asynccontextmanager, suppress

import numpy as np
from PIL import Image

from tests.patience import PATIENCE_S
from triptych.core.errors import TriptychError, from_code
from triptych.core.event import Failed, Finished, Tokens
from triptych.core.handoff import EncodeJob, JobHeader, LanguageJob, PromisedItem, TransferRef
from triptych.core.hashing import item_key
from triptych.core.lifecycle import Stage
from triptych.core.request import Item, Prompt, Sampling, StopRule
from triptych.executor.models.oracle_reference import oracle_reference
from triptych.inputs import oracle_words as words

SALT = b"tenant"


class Question:
    """A prompt with pictures and the answer that the oracle must give."""

    def __init__(self, rng, num_pictures=1, num_words=40, max_tokens=9, eos=()):
        self.sampling = Sampling(temperature=rng.choice([0.0, 0.8]), seed=rng.getrandbits(32))
        self.stop = StopRule(max_tokens, token_ids=eos)
        tokens, items, self.pictures, self.pixels = [], [], [], []
        for index in range(num_pictures + 1):
            tokens += [rng.randrange(256) for _ in range(rng.randint(1, num_words))]
            if index == num_pictures:
                break
            rows, columns = rng.randint(2, 7), rng.randint(2, 7)
            pixels, data = draw(rng, rows, columns)
            count = rows * columns
            self.pixels.append(pixels)
            self.pictures.append(data)
            key = item_key(SALT, "oracle", columns, rows, "", data)
            items.append(Item(key, len(tokens), count, (1, 2 * rows, 2 * columns)))
            tokens += [words.IMAGE_PAD] * count
        self.prompt = Prompt(tuple(tokens), tuple(items))

    def answer(self):
        return oracle_reference(self.prompt, self.pixels, self.sampling, self.stop, SALT)


def draw(rng, rows, columns):
    """Pixels of ``rows`` x ``columns`` visual tokens and the PNG that holds them."""
    side = words.PATCH_SIZE * words.MERGE_SIZE
    numbers = np.random.default_rng(rng.getrandbits(32))
    pixels = numbers.integers(0, 256, (rows * side, columns * side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return pixels, file.getvalue()


class Driver:
    """One session at every instance of a cluster."""

    def __init__(self, cluster, budget_s=PATIENCE_S, pause_s=0.0):
        self.cluster = cluster
        self.pause_s = pause_s
        self.budget_s = budget_s
        self.session = f"driver-{secrets.token_hex(4)}"
        self.queues = {}
        self.readers = {}
        self.lost = {}
        self.numbers = itertools.count()

    async def open(self):
        """Open what is not open yet."""
        for view in self.cluster.view().instances:
            name = view.description.id
            if name not in self.readers:
                opened = asyncio.Event()
                self.readers[name] = asyncio.create_task(self._read(name, opened))
                await opened.wait()

    async def close(self):
        for reader in self.readers.values():
            reader.cancel()
        await asyncio.gather(*self.readers.values(), return_exceptions=True)

    async def _read(self, name, opened):
        try:
            async with aclosing(self.cluster.instance(name).open(self.session)) as stream:
                async for batch in stream:
                    opened.set()
                    await asyncio.sleep(self.pause_s)
                    for event in batch.events:
                        if event.job in self.queues:
                            self.queues[event.job].put_nowait(event)
        except TriptychError as error:
            self.lost[name] = error
            for queue in self.queues.values():
                queue.put_nowait((name, error))
        finally:
            opened.set()

    def plan(self, question, generated=(), epoch=0, choose=0):
        """All jobs of one attempt with the instances they go to."""
        number = next(self.numbers)
        view = self.cluster.view()
        encoders, prefillers, decoders = (
            view.serving(stage) for stage in (Stage.ENCODE, Stage.PREFILL, Stage.DECODE)
        )
        decoder = decoders[choose % len(decoders)].description
        prefiller = prefillers[choose % len(prefillers)].description
        if Stage.PREFILL in decoder.role:
            prefiller = decoder

        def header(stage):
            name = f"req-{self.session}-{number}/0/{epoch}/{stage}"
            return JobHeader(name, self.session, epoch, self.budget_s, SALT)

        def promise(about, layout, num_tokens):
            return TransferRef(
                secrets.token_hex(16),
                epoch,
                about.id,
                about.transfer,
                layout.fingerprint,
                num_tokens,
            )

        jobs, promised = [], []
        for index, item in enumerate(question.prompt.items):
            encoder = encoders[(choose + index) % len(encoders)].description
            ref = promise(encoder, encoder.embedding, item.num_tokens)
            data = question.pictures[index]
            jobs.append(
                (encoder.id, EncodeJob(header(f"encode{index}"), item, data, "PNG", ref.handle))
            )
            promised.append(PromisedItem(item, ref))
        common = {
            "prompt": question.prompt,
            "sampling": question.sampling,
            "stop": question.stop,
            "generated": tuple(generated),
        }
        if prefiller.id == decoder.id:
            jobs.append(
                (decoder.id, LanguageJob(header("decode"), items=tuple(promised), **common))
            )
            return jobs
        kv = promise(prefiller, prefiller.kv, len(question.prompt) + len(generated))
        prefill = LanguageJob(header("prefill"), items=tuple(promised), publish=kv.handle, **common)
        jobs.append((prefiller.id, prefill))
        jobs.append((decoder.id, LanguageJob(header("decode"), kv=kv, **common)))
        return jobs

    async def ask(self, question, **where):
        """Tokens of one attempt; raises what it failed with. Cancels everything on any exit."""
        jobs = self.plan(question, **where)
        async with self.expecting(jobs) as queue:
            await self.send(jobs)
            return await self.hear(jobs, queue)

    @asynccontextmanager
    async def expecting(self, jobs):
        """A queue of the events of ``jobs``, which are cancelled on any exit."""
        queue = asyncio.Queue()
        for _, job in jobs:
            self.queues[job.header.id] = queue
        try:
            yield queue
        finally:
            for _, job in jobs:
                del self.queues[job.header.id]
            await self.cancel(jobs)

    async def send(self, jobs):
        for name, job in jobs:
            await self.cluster.instance(name).submit(job)

    async def hear(self, jobs, queue):
        """Tokens of an attempt whose jobs were sent; raises what it failed with."""
        found = {}
        last = jobs[-1][1]
        start = len(last.generated)
        ended = False
        while not (ended and found and len(found) == max(found) + 1 - start):
            event = await queue.get()
            match event:
                case (_, error):
                    raise error
                case Tokens():
                    for token in event.tokens:
                        assert token.index not in found
                        found[token.index] = token.id
                case Failed():
                    raise from_code(event.code, f"{event.detail} (blame {event.blame})")
                case Finished() if event.job == last.header.id:
                    ended = True
        return tuple(found[index] for index in sorted(found))

    async def cancel(self, jobs):
        for name, job in jobs:
            with suppress(KeyError, TriptychError):
                await self.cluster.instance(name).cancel([job.header.id])


@asynccontextmanager
async def driving(cluster, **options):
    driver = Driver(cluster, **options)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


async def idle(cluster, within_s=PATIENCE_S):
    """Every census once nothing is held any more, or whatever is held after ``within_s``."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        found = await cluster.census()
        if all(census.is_idle for census in found):
            return found
        if asyncio.get_running_loop().time() > deadline:
            held = {census.instance: census.held for census in found if not census.is_idle}
            raise AssertionError(f"held: {held}")
        await asyncio.sleep(0.02)


def rng_of(*words_):
    return random.Random(repr(words_))
