"""Work and pictures as engines show them to policies, drawn by Hypothesis or by hand."""

import math

from hypothesis import strategies as st

from scheduler import registry
from scheduler.prior import PRIOR
from triptych.core.ids import JobId
from triptych.engine.policies import Claim, Moment, Visual, Work

ORDERS = sorted(registry.ORDERS)
BATCHINGS = sorted(registry.BATCHINGS)
ENCODE_ORDERS = sorted(registry.ENCODE_ORDERS)
NOW_S = 100.0


def order(name, costs=PRIOR):
    return registry.ORDERS[name](costs)


def batching(name, costs=PRIOR):
    return registry.BATCHINGS[name](costs)


def encode_order(name, costs=PRIOR):
    return registry.ENCODE_ORDERS[name](costs)


def claim(**options):
    return Claim(**{"submitted_s": 0.0, "end_s": 1e6, **options})


def chunk(arrival, start, end, total=None, *, due_s=math.inf, served_s=0.0, passed=0, **options):
    """A piece of prefill."""
    total = total or end
    options = {"prefill_tokens": total, **options}
    return Work(JobId(f"job-{arrival}"), arrival, start, end, total, start == 0 or served_s > 0, 0,
                0, passed, due_s, served_s, claim(**options))  # fmt: skip


def decode(arrival, at=50, *, due_s=math.inf, served_s=1.0, passed=0, **options):
    """A decode with ``at`` cached tokens."""
    return Work(JobId(f"job-{arrival}"), arrival, at, at + 1, at + 1, True, 0, 0, passed, due_s,
                served_s, claim(**options))  # fmt: skip


def waiting(arrival, total=100, *, hit=0, overtaken=0, due_s=math.inf, served_s=0.0, **options):
    """A sequence that waits to be admitted."""
    options = {"prefill_tokens": total, **options}
    return Work(JobId(f"job-{arrival}"), arrival, 0, total, total, True, hit, overtaken, 0, due_s,
                served_s, claim(**options))  # fmt: skip


def visual(arrival, num_tokens=100, *, left=None, since_s=0.0, due_s=math.inf, **options):
    """A picture that waits to be encoded."""
    name = JobId(f"request-{arrival}/0/0/encode0")
    return Visual(name, arrival, num_tokens, left or num_tokens, since_s, due_s, claim(**options))


seconds = st.sampled_from([0.0, 0.01, 0.3, 2.0])
dues = st.sampled_from([-math.inf, NOW_S - 1.0, NOW_S, NOW_S + 0.03, NOW_S + 1.0, math.inf])
claims = st.builds(
    Claim,
    submitted_s=st.sampled_from([90.0, 99.9]),
    end_s=st.sampled_from([NOW_S + 0.1, NOW_S + 60.0]),
    tpot_s=st.sampled_from([0.03, 0.05, math.inf]),
    later_s=seconds,
    priority=st.sampled_from([0, 0, 0, 1, -1]),
    prefill_tokens=st.integers(0, 2000),
)
moments = st.builds(Moment, st.just(NOW_S), st.integers(0, 40))


@st.composite
def ready_work(draw):
    """Pieces of one to eight sequences, each a decode or up to four chunks in a row."""
    pieces = []
    for arrival in range(draw(st.integers(1, 8))):
        about = draw(claims)
        due_s, served_s, passed = draw(dues), draw(seconds), draw(st.integers(0, 40))
        start = draw(st.sampled_from([0, 0, 7, 32]))
        sizes = draw(st.lists(st.integers(1, 12), max_size=4))
        spans, end = [], start
        for size in sizes:
            spans.append((end, end + size))
            end += size
        if not spans:
            spans, end = [(start, start + 1)], start + 1
        for first, last in spans:
            pieces.append(
                Work(JobId(f"job-{arrival}"), arrival, first, last, end, first == start, 0, 0,
                     passed, due_s, served_s, about)
            )  # fmt: skip
    return pieces


@st.composite
def waiting_work(draw):
    """One to ten sequences that wait, in order of arrival."""
    return [
        Work(JobId(f"job-{arrival}"), arrival, 0, total, total, True, draw(st.integers(0, total)),
             draw(st.integers(0, 30)), 0, draw(dues), draw(seconds), draw(claims))
        for arrival, total in enumerate(draw(st.lists(st.integers(1, 99), min_size=1, max_size=10)))
    ]  # fmt: skip


@st.composite
def visuals(draw):
    """One to ten pictures that wait, in order of arrival."""
    sizes = draw(st.lists(st.integers(1, 99), min_size=1, max_size=10))
    return [
        Visual(JobId(f"r{arrival}/0/0/encode0"), arrival, size, size + draw(st.integers(0, 50)),
               draw(st.sampled_from([99.0, 99.05, 99.96, 100.0])), draw(dues), draw(claims))
        for arrival, size in enumerate(sizes)
    ]  # fmt: skip
