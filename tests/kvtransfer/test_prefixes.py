"""Who is asked to bring a prefix, and what becomes of one that does not come."""

import pytest

from kvtransfer.prefixes import Prefixes
from triptych.cache.kv import KvCache
from triptych.core.errors import TransferError
from triptych.core.handoff import JobHeader, LanguageJob
from triptych.core.ids import JobId, SessionId
from triptych.core.request import Prompt, Sampling, StopRule

BLOCK = 4


class Source:
    """Has ``has`` leading tokens; brings ``brings`` blocks of them, or raises."""

    def __init__(self, has, brings=None, error=None):
        self.has, self.brings, self.error = has, brings, error
        self.asked, self.foreseen = [], []

    @property
    def num_tokens(self):
        return self.has

    def find(self, job, table):
        return self if self.has else None

    def foresee(self, job, table):
        self.foreseen.append(job.header.id)

    async def bring(self, blocks, first, deadline_s):
        self.asked.append((tuple(blocks), first))
        if self.error is not None:
            raise self.error
        return len(blocks) if self.brings is None else self.brings


def job(name="j"):
    header = JobHeader(JobId(name), SessionId("s"), 0, 1.0, b"salt")
    return LanguageJob(header, Prompt((1,) * 20), Sampling(), StopRule(4))


def table():
    cache = KvCache(8, BLOCK, "m")
    made = cache.table(JobId("j"), b"salt", [1] * 20)
    made.hit_tokens = BLOCK
    return made


async def test_the_longest_prefix_is_brought_and_of_equals_the_nearest():
    near, far, equal = Source(8), Source(16), Source(16)
    prefixes = Prefixes((near, far, equal), BLOCK)
    assert prefixes.elsewhere(job(), table()) == 16
    assert await prefixes.bring(JobId("j"), (5, 6, 7, 8, 9), 4, 12, 0.0) == 12
    assert (near.asked, far.asked, equal.asked) == ([], [((5, 6, 7), 1)], [])


async def test_what_is_here_already_is_not_brought():
    prefixes = Prefixes((Source(BLOCK), Source(0)), BLOCK)
    assert prefixes.elsewhere(job(), table()) == 0
    assert await prefixes.bring(JobId("j"), (5, 6), 4, 4, 0.0) == 4
    assert Prefixes((), BLOCK).elsewhere(job(), table()) == 0


async def test_a_prefix_that_does_not_come_costs_itself_only():
    prefixes = Prefixes((Source(16, error=TransferError("gone")),), BLOCK)
    assert prefixes.elsewhere(job(), table()) == 16
    assert await prefixes.bring(JobId("j"), (5, 6, 7, 8), 4, 16, 0.0) == 4
    partly = Prefixes((Source(16, brings=2),), BLOCK)
    assert partly.elsewhere(job(), table()) == 16
    assert await partly.bring(JobId("j"), (5, 6, 7, 8), 4, 16, 0.0) == 8


@pytest.mark.parametrize("again", [True, False])
async def test_a_forgotten_or_repeated_search_leaves_nothing(again: bool):
    source = Source(16)
    prefixes = Prefixes((source,), BLOCK)
    prefixes.foresee(job(), table())
    assert source.foreseen == ["j"]
    prefixes.elsewhere(job(), table())
    if again:
        source.has = 0
        assert prefixes.elsewhere(job(), table()) == 0
    else:
        prefixes.forget(JobId("j"))
    assert await prefixes.bring(JobId("j"), (5, 6, 7, 8), 4, 16, 0.0) == 4
    assert source.asked == []
