"""Prefixes that are lent: locked while somebody may read them, and given up where room is short."""

import asyncio

import pytest

from kvtransfer.lending import Lending
from tests.kvtransfer.stores import Store, layout, pair
from tests.patience import PATIENCE_S
from triptych.cache.kv import KvCache
from triptych.core.errors import Preempted, StaleCache, TriptychError
from triptych.core.event import Finished
from triptych.core.handoff import JobHeader, LendJob
from triptych.core.ids import Handle, JobId, SessionId
from triptych.core.request import Prompt

pytestmark = pytest.mark.usefixtures("no_leak")

NUM_BLOCKS = 6
OF = layout()
SIZE = OF.block_size


def lend(name, tokens):
    header = JobHeader(JobId(name), SessionId("s"), 0, 1.0, b"salt")
    return LendJob(header, Prompt(tuple(tokens)), Handle(f"h-{name}"))


class Bank:
    """A lender with some prompts in its tree."""

    def __init__(self, both):
        self.both, self.events, self.num_wakes = both, [], 0
        self.cache = KvCache(NUM_BLOCKS, SIZE, "m")
        self.lending = Lending(self.cache, both.source, both.outbox, self.wake, self.events.append)

    def wake(self):
        self.num_wakes += 1

    def know(self, tokens):
        table = self.cache.table(JobId("before"), b"salt", list(tokens))
        assert self.cache.open(table, len(tokens), limit=len(tokens))
        self.cache.commit(table, len(tokens))
        blocks = list(table.blocks)
        self.cache.release(table)
        return blocks

    async def fetch(self, name, blocks):
        """A borrower's fetch of all that was lent."""
        return await self.both.fetch(len(blocks), blocks, handle=f"h-{name}")

    async def ended(self, *names):
        async with asyncio.timeout(PATIENCE_S):
            while [event.job for event in self.events] != list(names):
                await asyncio.sleep(0.002)
        assert all(isinstance(event, Finished) for event in self.events)


@pytest.fixture
async def bank():
    async with pair("shm", source=Store(NUM_BLOCKS, OF).fill(1), target=Store(9, OF)) as both:
        made = Bank(both)
        yield made
        made.cache.check()


async def test_a_loan_locks_what_it_lends_until_it_was_fetched(bank):
    tokens = range(3 * SIZE)
    theirs = bank.know(tokens)
    bank.lending.submit(lend("a", tokens))
    bank.lending.submit(lend("a", tokens))
    assert bank.cache.num_available == NUM_BLOCKS - 3
    await bank.fetch("a", [4, 8, 1])
    bank.both.assert_equal(theirs, [4, 8, 1])
    await bank.ended("a")
    assert bank.cache.num_available == NUM_BLOCKS and bank.num_wakes == 1
    assert bank.lending.jobs() == {}


async def test_what_is_not_there_any_more_is_refused(bank):
    bank.know(range(SIZE))
    bank.lending.submit(lend("a", range(2 * SIZE)))
    with pytest.raises(StaleCache):
        await bank.fetch("a", [1, 2])
    await bank.ended("a")


async def test_where_room_is_short_the_youngest_loan_that_nobody_fetches_ends(bank):
    old, new = range(2 * SIZE), range(100, 100 + 2 * SIZE)
    for tokens in (old, new):
        bank.know(tokens)
    bank.lending.submit(lend("old", old))
    bank.lending.submit(lend("new", new))
    own = bank.both.offer("own")  # not lent: its taker may need it
    own.append([0])
    own.finish()
    assert bank.cache.num_available == NUM_BLOCKS - 4
    bank.lending.relieve()
    await bank.ended("new")
    assert bank.cache.num_available == NUM_BLOCKS - 2
    with pytest.raises(Preempted):
        await bank.fetch("new", [1, 2])
    bank.lending.relieve()
    await bank.ended("new", "old")
    bank.lending.relieve()
    await bank.both.fetch(1, [1], handle="own")


async def test_a_cancelled_loan_holds_nothing(bank):
    tokens = range(2 * SIZE)
    bank.know(tokens)
    bank.lending.submit(lend("a", tokens))
    await bank.lending.cancel(JobId("a"))
    await bank.lending.cancel(JobId("a"))
    assert bank.cache.num_available == NUM_BLOCKS
    with pytest.raises(TriptychError):
        await bank.fetch("a", [1, 2])
