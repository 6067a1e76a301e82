"""Admission by longest cached prefix: the order, the guard, the price, and the same tokens."""

import pytest

from scheduler.order import MOST_OVERTAKEN
from tests.engine.bench import Bench
from tests.engine.scripted import expected, make_job
from triptych.engine.outcome import Ended, Reserved
from triptych.engine.room import REMATCHED

LONG, SHORT, OTHER = list(range(40)), list(range(100, 112)), list(range(200, 240))


def warmed(order, **options):
    """A bench whose tree holds LONG and SHORT, with one place for a sequence at a time."""
    bench = Bench(order=order, max_sequences=1, **options)
    for name, tokens in (("long", LONG), ("short", SHORT)):
        bench.engine.submit(make_job(name, tokens, max_tokens=1), 0.0)
    bench.run()
    bench.said.clear()
    return bench


def submit_all(bench):
    jobs = [
        make_job("new", OTHER, max_tokens=2),
        make_job("follows-short", [*SHORT, 7, 8], max_tokens=2),
        make_job("follows-long", [*LONG, 7, 8], max_tokens=2),
        make_job("newer", OTHER[::-1], max_tokens=2),
    ]
    for job in jobs:
        bench.engine.submit(job, 0.0)
    bench.run()
    return jobs


def admitted(bench):
    return [said.job for said in bench.of(Reserved)]


def test_longest_prefix_first_with_the_same_tokens():
    admissions = {}
    for order in ("fcfs", "longest_prefix"):
        bench = warmed(order)
        for job in submit_all(bench):
            assert bench.tokens(job.header.id) == expected(job)
        admissions[order] = admitted(bench)
    assert admissions["fcfs"] == ["new", "follows-short", "follows-long", "newer"]
    assert admissions["longest_prefix"] == ["follows-long", "follows-short", "new", "newer"]


def test_prefixes_are_used_while_they_are_there():
    """In a tight pool the order decides whether a prefix still is there when its turn comes."""
    cached = {}
    for order in ("fcfs", "longest_prefix"):
        bench = warmed(order, num_blocks=16)
        submit_all(bench)
        cached[order] = sum(said.timing.cached_tokens for said in bench.of(Ended))
    assert cached["fcfs"] < cached["longest_prefix"] == 40 + 12


def test_nobody_is_overtaken_without_bound():
    bench = warmed("longest_prefix")
    bench.engine.submit(make_job("patient", OTHER, max_tokens=1), 0.0)
    for number in range(3 * MOST_OVERTAKEN):
        bench.engine.submit(make_job(f"n{number}", [*LONG, number], max_tokens=1), 0.0)
    bench.run()
    order = admitted(bench)
    assert len(order) == 3 * MOST_OVERTAKEN + 1
    assert order.index("patient") == MOST_OVERTAKEN


def test_waiting_sequences_are_looked_up_only_when_it_may_matter(monkeypatch):
    bench = Bench(order="longest_prefix", max_sequences=1, num_blocks=256)
    looked, match = [], bench.cache.match

    def counted(table, *args):
        looked.append(table.owner)
        return match(table, *args)

    monkeypatch.setattr(bench.cache, "match", counted)
    for number in range(30):
        tokens = range(1000 * number, 1000 * number + 20)
        bench.engine.submit(make_job(f"{number}", tokens, max_tokens=40), 0.0)
    bench.step()
    assert sorted(looked) == sorted(f"{number}" for number in range(30))
    looked.clear()
    bench.step()
    assert looked == [], "no place is free: the order does not matter"
    while len(admitted(bench)) == 1:
        bench.step()
    assert len(looked) == len(set(looked)) == REMATCHED


@pytest.mark.parametrize("deterministic", [False, True])
def test_preempted_sequences_come_back(deterministic):
    """Blocks run out again and again; every sequence ends with its tokens all the same."""
    bench = Bench(order="longest_prefix", num_blocks=14, deterministic=deterministic)
    jobs = [make_job(f"{n}", [*LONG[: 4 * n], n], max_tokens=25) for n in range(1, 6)]
    for job in jobs:
        bench.engine.submit(job, 0.0)
    bench.run()
    assert bench.engine.load().preemptions > 0
    for job in jobs:
        assert bench.tokens(job.header.id) == expected(job)
