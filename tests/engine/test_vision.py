import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from triptych.cache.embeddings import EmbeddingCache
from triptych.core.config import EngineConfig
from triptych.core.errors import InvariantBroken, Overloaded, RequestError
from triptych.core.handoff import EncodeJob, JobHeader
from triptych.core.hashing import digest
from triptych.core.ids import Handle, JobId, SessionId
from triptych.core.plan import VisionResult
from triptych.core.request import Item
from triptych.engine.outcome import Dropped, Embedded, Starved
from triptych.engine.policies import in_order_of_arrival
from triptych.engine.vision import VisionEngine

SIZE = 4
LENGTHS = {"a": 1, "b": 4, "c": 7, "d": 9, "e": 17}


def make_job(name, content, *, num_tokens=None, budget_s=1e9):
    num_tokens = num_tokens or LENGTHS[content]
    item = Item(digest("item", content.encode()), 3, num_tokens, (1, 2, 2 * num_tokens))
    header = JobHeader(JobId(name), SessionId("session"), 0, budget_s)
    return EncodeJob(header, item, b"", "PNG", Handle("secret"))


class Bench:
    """An engine over a store whose rows are the pixels that they were made from."""

    def __init__(
        self,
        num_blocks=16,
        *,
        must_wait=lambda: False,
        patience_s=math.inf,
        order=in_order_of_arrival,
        split=None,
        **config,
    ):
        options = {"image_budget_tokens": 8, "max_sequences": 4, "max_waiting": 60, **config}
        self.cache = EmbeddingCache(num_blocks, SIZE)
        self.engine = VisionEngine(
            EngineConfig(**options),
            self.cache,
            order=order,
            split=split,
            must_wait=must_wait,
            patience_s=patience_s,
        )
        self.rows = {}
        self.now = 0.0
        self.said = []
        self.encoded = []

    def submit(self, name, content, **options):
        self.engine.expect(make_job(name, content, **options), self.now)
        self.engine.submit(JobId(name), content)

    def execute(self, plan):
        for task in plan.tasks:
            self.rows.update(dict.fromkeys(task.blocks, task.pixels))
            self.encoded.append(task.job)
        return VisionResult(0.5)

    def plan(self):
        step = self.engine.plan(self.now)
        if step is not None:
            self.said += step.outcomes
        return step

    def apply(self, step):
        self.said += self.engine.apply(step, self.execute(step.plan), self.now)

    def step(self):
        step = self.plan()
        if step is not None and step.jobs:
            self.apply(step)
        self.engine.check()
        return [] if step is None else [task.job for task in step.plan.tasks]

    def run(self):
        steps = []
        while jobs := self.step():
            steps.append(jobs)
        return steps

    def of(self, kind):
        return [said for said in self.said if isinstance(said, kind)]


def test_in_deterministic_mode_every_picture_is_encoded_alone():
    """The shape of a step decides the last bits of what it computes."""
    bench = Bench(deterministic=True)
    for name, content in (("1", "a"), ("2", "a"), ("3", "b"), ("4", "d")):
        bench.submit(name, content)
    assert bench.run() == [["1"], ["3"], ["4"]]
    assert {said.job for said in bench.of(Embedded)} == {"1", "2", "3", "4"}


def test_pictures_share_a_step_up_to_the_budget():
    bench = Bench()
    for name, content in (("1", "b"), ("2", "a"), ("3", "c"), ("4", "d"), ("5", "e")):
        bench.submit(name, content)
    assert bench.run() == [["1", "2"], ["3"], ["4"], ["5"]]
    for said, content in zip(bench.of(Embedded), "bacde", strict=True):
        assert {bench.rows[block] for block in said.blocks} == {content}
        assert not said.is_cached
        assert (said.timing.compute_s, said.timing.cached_tokens) == (0.5, 0)


def test_equal_pictures_are_encoded_once():
    bench = Bench()
    for name in "123":
        bench.submit(name, "c")
    assert bench.run() == [["1"]]
    assert bench.engine.join(make_job("4", "c"), 0.0)
    assert bench.run() == []
    assert [said.is_cached for said in bench.of(Embedded)] == [False, True, True, True]
    assert len({said.blocks for said in bench.of(Embedded)}) == 1
    assert bench.of(Embedded)[3].timing.cached_tokens == 7
    for name in "1234":
        bench.engine.release(name)
    assert bench.engine.is_idle
    assert bench.engine.census()[1]["embedding_block.cached"] == 2


def test_embedding_stays_until_every_lease_is_over():
    bench = Bench(num_blocks=2)
    bench.submit("1", "b")
    bench.submit("2", "b")
    bench.submit("3", "c")
    assert bench.run() == [["1"]]
    bench.engine.release("1")
    assert bench.run() == []
    bench.engine.release("2")
    assert bench.run() == [["3"]]
    assert bench.rows == {0: "c", 1: "c"}


def test_full_cache_is_waited_for_in_order():
    bench = Bench(num_blocks=3)
    bench.submit("1", "c")
    bench.submit("2", "d")
    bench.submit("3", "a")
    bench.submit("4", "c")
    assert bench.run() == [["1"]]
    assert [said.job for said in bench.of(Embedded)] == ["1", "4"]
    bench.engine.release("1")
    bench.engine.release("4")
    assert bench.run() == [["2"]]
    bench.engine.release("2")
    assert bench.run() == [["3"]]


def test_a_picture_that_is_being_decoded_has_its_turn_for_a_place():
    """The order of places is that of arrival, not that in which pictures were decoded."""
    bench = Bench(num_blocks=4)
    bench.engine.expect(make_job("1", "c"), 0.0)
    bench.submit("2", "b")
    bench.submit("3", "d")
    assert bench.run() == [["2"]]
    assert bench.cache.totals()["embedding_block.free"] == 1
    bench.engine.release("2")
    assert bench.run() == [], "3 took the place of 1"
    bench.engine.submit("1", "c")
    assert bench.run() == [["1"]]
    bench.engine.release("1")
    assert bench.run() == [["3"]]
    assert [said.job for said in bench.of(Embedded)] == ["2", "1", "3"]


def test_a_place_is_taken_outside_the_budget_of_a_step():
    bench = Bench()
    bench.submit("1", "b")
    bench.engine.expect(make_job("2", "e"), 0.0)
    bench.submit("3", "a")
    assert bench.run() == [["1", "3"]]
    bench.engine.submit("2", "e")
    assert bench.run() == [["2"]]


def test_a_picture_that_cannot_be_decoded_gives_its_place_back():
    bench = Bench(num_blocks=3)
    for name in "12":
        bench.engine.expect(make_job(name, "d"), 0.0)
    assert bench.run() == []
    bench.engine.submit("2", "d")
    bench.engine.abandon("1", "invalid", "no picture")
    assert bench.run() == [["2"]]
    bench.engine.abandon("2", "invalid", "no picture")  # it is over
    assert bench.of(Dropped) == [Dropped("1", "invalid", "no picture")]
    bench.engine.release("2")
    assert bench.engine.is_idle


def test_a_picture_that_another_encoded_needs_no_pixels():
    bench = Bench()
    bench.engine.expect(make_job("1", "b"), 0.0)
    bench.submit("2", "b")
    assert bench.run() == [["2"]]
    assert sorted(said.job for said in bench.of(Embedded)) == ["1", "2"]
    bench.engine.submit("1", "b")
    assert bench.run() == []


def test_a_policy_is_asked_once_for_each_place():
    """Not again for a picture that has one and is being decoded; a turn is a place."""
    asked = []

    def order(waiting, moment):
        asked.append(([visual.job for visual in waiting], moment.number))
        return range(len(waiting))

    bench = Bench(order=order)
    bench.engine.expect(make_job("1", "b"), 0.0)
    bench.step()
    bench.step()
    bench.submit("2", "a")
    bench.step()
    bench.engine.submit("1", "b")
    bench.step()
    bench.submit("3", "a")
    bench.step()
    assert asked == [(["1"], 0), (["2"], 1), (["1"], 2), (["3"], 2)]


def test_a_picture_that_is_decoded_outlives_the_failure_of_an_equal_one():
    bench = Bench()
    bench.engine.expect(make_job("1", "b"), 0.0)
    bench.submit("2", "b")
    step = bench.plan()
    assert step.jobs == {"2"}
    bench.said += bench.engine.execution_failed(step)
    assert bench.run() == []
    bench.engine.submit("1", "b")
    assert bench.run() == [["1"]]
    assert [said.job for said in bench.of(Dropped)] == ["2"]


@pytest.mark.parametrize("has_place", [False, True])
@pytest.mark.parametrize("comes", [True, False])
def test_a_picture_may_rely_on_who_brings_its_embedding(has_place, comes):
    bench = Bench()
    bench.engine.expect(make_job("1", "b"), 0.0)
    if has_place:
        bench.step()
    else:
        with pytest.raises(InvariantBroken):
            bench.engine.rely("1")
    (entry,) = bench.cache.reserve_all([(make_job("x", "b").item.key, 4)], "recall")
    assert bench.cache.claim(entry)
    bench.engine.rely("1")
    bench.engine.rely("1")
    assert bench.run() == []
    (bench.cache.commit if comes else bench.cache.abort)(entry)
    bench.cache.release(entry)
    assert bench.run() == []
    assert [said.job for said in bench.of(Embedded)] == ["1"] * comes
    assert [said.code for said in bench.of(Dropped)] == ["unavailable"] * (not comes)


def test_places_kept_for_others_are_not_taken():
    others_wait = [True]
    bench = Bench(must_wait=lambda: others_wait[0])
    bench.submit("1", "b")
    bench.submit("2", "a")
    (place,) = bench.cache.reserve_all([(make_job("x", "a").item.key, 1)], "prefill")
    bench.cache.entrust(place)
    assert bench.run() == [["2"]]
    assert place.is_ready
    others_wait[0] = False
    assert bench.run() == [["1"]]


def test_entry_that_another_writes_is_waited_for():
    bench = Bench()
    (entry,) = bench.cache.reserve_all([(make_job("x", "b").item.key, 4)], "prefill")
    bench.submit("1", "b")
    assert bench.engine.join(make_job("2", "b"), 0.0)
    assert bench.run() == []
    bench.cache.abort(entry)
    assert bench.run() == [["1"]]
    assert bench.of(Dropped) == [Dropped("2", "unavailable", "the picture was not encoded")]
    bench.cache.release(entry)


def test_entry_that_its_writer_hands_on_is_encoded_here():
    bench = Bench()
    (entry,) = bench.cache.reserve_all([(make_job("x", "b").item.key, 4)], "prefill")
    assert bench.engine.join(make_job("1", "b"), 0.0)
    assert bench.run() == []
    bench.cache.entrust(entry)
    bench.submit("2", "b")
    assert bench.run() == [["2"]]
    assert bench.of(Dropped) == [Dropped("1", "unavailable", "the picture was not encoded")]
    assert entry.is_ready
    bench.cache.release(entry)


def test_join_takes_nothing_that_nobody_writes():
    bench = Bench()
    assert not bench.engine.join(make_job("1", "a"), 0.0)
    (entry,) = bench.cache.reserve_all([(make_job("x", "a").item.key, 1)])
    bench.cache.entrust(entry)
    assert not bench.engine.join(make_job("1", "a"), 0.0)
    assert bench.engine.is_idle


def test_failed_step_fails_its_jobs_and_the_others_start_anew():
    bench = Bench()
    bench.submit("1", "b")
    bench.submit("2", "b")
    bench.submit("3", "c")
    step = bench.plan()
    assert step.jobs == {"1"}
    bench.said += bench.engine.execution_failed(step)
    assert bench.run() == [["2"], ["3"]]
    assert [(said.job, said.code) for said in bench.of(Dropped)] == [("1", "internal")]


def test_cancelled_picture_is_kept_for_others():
    bench = Bench()
    bench.submit("1", "b")
    bench.submit("2", "b")
    bench.submit("3", "c")
    step = bench.plan()
    assert not bench.engine.cancel("1")
    assert bench.engine.cancel("3")
    bench.apply(step)
    assert [said.job for said in bench.of(Embedded)] == ["2"]
    assert [(said.job, said.code) for said in bench.of(Dropped)] == [
        ("3", "cancelled"),
        ("1", "cancelled"),
    ]
    assert bench.engine.cancel("2")
    assert bench.engine.cancel("2")
    assert bench.engine.is_idle


def test_late_pictures_are_dropped_before_they_are_encoded():
    bench = Bench()
    bench.submit("1", "b", budget_s=2.0)
    assert bench.engine.next_deadline() == 2.0
    bench.now = 2.0
    assert bench.run() == []
    assert bench.of(Dropped) == [Dropped("1", "deadline_exceeded", "")]
    assert bench.engine.next_deadline() is None


def test_pictures_without_room_are_told_of_and_may_go_first():
    bench = Bench(num_blocks=5, patience_s=2.0)
    for name, content in (("1", "e"), ("2", "d"), ("3", "c"), ("4", "b")):
        bench.submit(name, content)
    assert bench.run() == [["1"]]
    for bench.now, until_s in ((1.9, 2.0), (2.0, 4.0), (3.9, 4.0), (4.0, 6.0)):
        assert bench.step() == []
        assert bench.engine.next_deadline() == until_s
    assert bench.of(Starved) == [Starved(("2", "3", "4"))] * 2
    bench.engine.prefer(["4"])
    bench.engine.release("1")
    assert bench.run() == [["4"], ["2"]]
    assert bench.engine.next_deadline() == 6.0
    bench.engine.cancel("3")
    assert bench.step() == []
    assert bench.engine.next_deadline() is None


def test_refusals():
    bench = Bench(num_blocks=3, max_sequences=1, max_waiting=1)
    with pytest.raises(RequestError):
        bench.submit("1", "x", num_tokens=13)
    bench.submit("1", "a")
    bench.submit("1", "a")
    bench.submit("2", "b")
    with pytest.raises(Overloaded):
        bench.submit("3", "c")
    step = bench.plan()
    with pytest.raises(InvariantBroken):
        bench.plan()
    bench.apply(step)
    with pytest.raises(InvariantBroken):
        bench.apply(step)


class VisionMachine(RuleBasedStateMachine):
    """Any interleaving: every job hears one end, rows are always of the right picture."""

    def __init__(self):
        super().__init__()
        self.bench = Bench(num_blocks=7)
        self.contents = {}
        self.ends = {}
        self.step = None
        self.decoding = []

    @rule(content=st.sampled_from("abcde"), joins=st.booleans())
    def submit(self, content, joins):
        name = f"job-{len(self.contents)}"
        job = make_job(name, content)
        if not (joins and self.bench.engine.join(job, 0.0)):
            self.bench.engine.expect(job, 0.0)
            self.decoding.append(name)
        self.contents[name] = content

    @precondition(lambda self: self.decoding)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def decoded(self, data, fails):
        name = data.draw(st.sampled_from(self.decoding))
        self.decoding.remove(name)
        if fails:
            self.bench.engine.abandon(name, "invalid", "no picture")
            self.bench.said += self.bench.engine.poll()
        else:
            self.bench.engine.submit(name, self.contents[name])

    @precondition(lambda self: self.step is None)
    @rule()
    def plan(self):
        step = self.bench.plan()
        if step is not None and step.jobs:
            self.step = step

    @precondition(lambda self: self.step is not None)
    @rule(fails=st.sampled_from([False, False, True]))
    def end_step(self, fails):
        step, self.step = self.step, None
        if fails:
            self.bench.said += self.bench.engine.execution_failed(step)
        else:
            self.bench.apply(step)

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), is_cancel=st.booleans())
    def let_go(self, data, is_cancel):
        name = data.draw(st.sampled_from(sorted(self.contents)))
        (self.bench.engine.cancel if is_cancel else self.bench.engine.release)(name)
        self.bench.said += self.bench.engine.poll()

    @invariant()
    def is_consistent(self):
        self.bench.engine.check()
        for said in self.bench.said:
            assert said.job not in self.ends
            self.ends[said.job] = said
            if isinstance(said, Embedded):
                rows = {self.bench.rows[block] for block in said.blocks}
                assert rows == {self.contents[said.job]}
        self.bench.said = []

    def teardown(self):
        if self.step is not None:
            self.end_step(False)
        for name in self.decoding:
            self.bench.engine.submit(name, self.contents[name])
        self.is_consistent()
        for _ in range(2 * len(self.contents) + 4):
            for name in self.contents:
                self.bench.engine.release(name)
            self.bench.step()
            self.is_consistent()
        assert self.ends.keys() == self.contents.keys()
        assert self.bench.engine.is_idle
        held, totals = self.bench.engine.census()
        assert held == []
        assert totals["embedding_block.free"] + totals["embedding_block.cached"] == 7


VisionMachine.TestCase.settings = settings(
    max_examples=100, report_multiple_bugs=False, stateful_step_count=40, deadline=None
)
TestVision = VisionMachine.TestCase
