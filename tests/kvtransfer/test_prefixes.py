"""Who is asked to bring a prefix, and what becomes of one that comes in part or not at all."""

from kvtransfer.prefixes import Place, Prefixes
from triptych.cache.kv import KvCache
from triptych.core.handoff import JobHeader, LanguageJob
from triptych.core.ids import JobId, SessionId
from triptych.core.request import Prompt, Sampling, StopRule

BLOCK = 4
BLOCKS = (5, 6, 7, 8, 9)


class Source:
    """Has ``has`` leading tokens; brings them, or up to ``brings``."""

    def __init__(self, has, brings=None):
        self.has, self.brings = has, has if brings is None else brings
        self.asked, self.foreseen, self.forgotten = [], [], []

    def num_tokens(self, job, table):
        return self.has

    def foresee(self, job, table):
        self.foreseen.append(job.header.id)

    def forget(self, job):
        self.forgotten.append(job)

    async def bring(self, job, place, deadline_s):
        self.asked.append(place)
        return max(place.start, min(place.end, self.brings))


def job(name="j"):
    header = JobHeader(JobId(name), SessionId("s"), 0, 1.0, b"salt")
    return LanguageJob(header, Prompt((1,) * 20), Sampling(), StopRule(4))


def table():
    cache = KvCache(8, BLOCK, "m")
    made = cache.table(JobId("j"), b"salt", [1] * 20)
    made.hit_tokens = BLOCK
    return made


async def test_each_source_goes_on_where_the_one_before_it_ended():
    near, far = Source(8), Source(16)
    prefixes = Prefixes((near, far))
    assert prefixes.elsewhere(job(), table()) == 16
    assert await prefixes.bring(job(), Place(BLOCKS, 4, 16), 0.0) == 16
    assert near.asked == [Place(BLOCKS, 4, 16)] and far.asked == [Place(BLOCKS, 8, 16)]


async def test_a_source_is_not_asked_for_what_another_brought():
    near, far = Source(16), Source(16)
    assert await Prefixes((near, far)).bring(job(), Place(BLOCKS, 4, 16), 0.0) == 16
    assert len(near.asked) == 1 and far.asked == []


async def test_what_does_not_come_costs_itself_only():
    near, far = Source(16, brings=0), Source(12)
    prefixes = Prefixes((near, far))
    assert await prefixes.bring(job(), Place(BLOCKS, 4, 16), 0.0) == 12
    assert await Prefixes((near,)).bring(job(), Place(BLOCKS, 4, 16), 0.0) == 4
    assert Prefixes(()).elsewhere(job(), table()) == 0


def test_every_source_hears_of_a_waiting_job_and_of_its_end():
    sources = Source(0), Source(8)
    prefixes = Prefixes(sources)
    prefixes.foresee(job(), table())
    prefixes.forget(JobId("j"))
    assert [one.foreseen for one in sources] == [["j"], ["j"]]
    assert [one.forgotten for one in sources] == [["j"], ["j"]]
