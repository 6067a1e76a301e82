import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.batching import PATIENCE, boundaries_from_prompt, decode_first
from scheduler.latency import Latencies
from scheduler.order import MOST_OVERTAKEN, fcfs, longest_prefix
from scheduler.placement import LeastLoaded, RoundRobin
from scheduler.preemption import youngest_first
from scheduler.registry import placement, policies
from triptych.core.config import EngineConfig
from triptych.core.errors import ConfigError
from triptych.core.hashing import digest
from triptych.core.ids import JobId
from triptych.core.request import Item, Prompt
from triptych.engine.policies import Budget, Work


def work(arrival, start, end, *, total=None, is_decode=False):
    return Work(JobId(f"job-{arrival}"), arrival, start, end, total or end, is_decode)


def decode(arrival, at=50):
    return work(arrival, at, at + 1, is_decode=True)


@st.composite
def prompts(draw):
    items, end = [], 0
    for index in range(draw(st.integers(0, 4))):
        offset = end + draw(st.integers(0, 9))
        num_tokens = draw(st.integers(1, 20))
        items.append(Item(digest("item", bytes([index])), offset, num_tokens, (1, 1, 1)))
        end = offset + num_tokens
    length = max(1, end + draw(st.integers(0, 20)))
    return Prompt(tuple(range(length)), tuple(items))


@given(prompts(), st.integers(1, 17))
def test_boundaries_are_multiples_and_borders_of_items(prompt, chunk):
    cuts = boundaries_from_prompt(prompt, chunk)
    assert list(cuts) == sorted(set(cuts))
    assert cuts[0] > 0
    assert cuts[-1] == len(prompt)
    borders = {border for item in prompt.items for border in (item.offset, item.end)}
    assert borders - {0} <= set(cuts)
    assert all(cut % chunk == 0 or cut in borders or cut == len(prompt) for cut in cuts)
    assert all(after - before <= chunk for before, after in zip((0, *cuts), cuts, strict=False))


def test_boundaries_of_a_beginning_do_not_depend_on_the_rest():
    short, long = Prompt(tuple(range(30))), Prompt(tuple(range(90)))
    assert set(boundaries_from_prompt(short, 8)[:-1]) <= set(boundaries_from_prompt(long, 8))


def test_decodes_come_first_and_chunks_are_never_cut():
    ready = [work(0, 0, 8), decode(1), work(2, 0, 8), decode(3), work(4, 0, 1, total=9)]
    assert decode_first(ready, Budget(18, 9, 0)) == [1, 3, 0, 2]
    assert decode_first(ready, Budget(17, 9, 0)) == [1, 3, 0]
    assert decode_first(ready, Budget(9, 9, 0)) == [1, 3]
    assert decode_first(ready, Budget(1, 9, 0)) == [1]
    assert decode_first(ready, Budget(19, 9, 0)) == [1, 3, 0, 2, 4]


def test_passed_over_prefill_goes_first_at_last():
    ready = [decode(0), decode(1), work(2, 0, 8)]
    assert decode_first(ready, Budget(9, 9, PATIENCE - 1)) == [0, 1]
    assert decode_first(ready, Budget(9, 9, PATIENCE)) == [0, 2]
    assert decode_first(ready, Budget(8, 9, PATIENCE)) == [2]


def test_piece_larger_than_the_budget_goes_alone():
    assert decode_first([work(0, 0, 30)], Budget(8, 9, 0)) == [0]
    assert decode_first([work(0, 0, 30), decode(1)], Budget(8, 9, PATIENCE)) == [0]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.booleans()), min_size=1),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_any_batch_is_within_its_budget_and_never_empty(pieces, tokens, count, passed_over):
    ready = [
        decode(index) if is_decode else work(index, start, start + size, total=99)
        for index, (start, size, is_decode) in enumerate(pieces)
    ]
    chosen = decode_first(ready, Budget(tokens, count, passed_over))
    sizes = [ready[index].end - ready[index].start for index in chosen]
    assert 1 <= len(chosen) == len(set(chosen)) <= count
    assert sum(sizes) <= tokens or len(chosen) == 1
    kinds = [ready[index].is_decode for index in chosen]
    assert kinds == sorted(kinds, reverse=True)


def test_pieces_of_one_sequence_stay_in_order_without_a_gap():
    ready = [work(0, 8, 9, total=9), work(0, 0, 8, total=9), work(1, 0, 3, total=3)]
    assert decode_first(ready, Budget(12, 9, 0)) == [1, 0, 2]
    assert decode_first(ready, Budget(8, 9, 0)) == [1]


def test_first_come_first_served():
    assert fcfs([work(5, 0, 1), work(2, 0, 1), work(9, 0, 1)]) == [1, 0, 2]


def waiting(arrival, hit=0, num_overtaken=0):
    return work(arrival, 0, 99)._replace(hit=hit, num_overtaken=num_overtaken)


def test_longest_prefix_first_and_of_equals_the_oldest():
    assert longest_prefix([waiting(0), waiting(1, 6), waiting(2, 9), waiting(3, 6)]) == [2, 1, 3, 0]
    assert longest_prefix([]) == []


def test_who_was_overtaken_often_goes_before_any_prefix():
    starved = [waiting(0, 0, MOST_OVERTAKEN - 1), waiting(1, 0, MOST_OVERTAKEN + 3),
               waiting(2, 5, MOST_OVERTAKEN), waiting(3, 50)]  # fmt: skip
    assert longest_prefix(starved) == [1, 2, 3, 0]


def test_only_younger_sequences_are_preempted():
    running = [decode(1), decode(7), decode(4)]
    assert youngest_first(decode(3), running) == 1
    assert youngest_first(decode(7), running[:1]) is None
    assert youngest_first(decode(0), []) is None


def test_registry():
    assert isinstance(placement("least_loaded", Latencies()), LeastLoaded)
    assert isinstance(placement("round_robin", Latencies()), RoundRobin)
    assert placement("round_robin", Latencies()) is not placement("round_robin", Latencies())
    assert policies(EngineConfig()).order is fcfs
    assert not policies(EngineConfig()).matches
    by_prefix = policies(EngineConfig(order="longest_prefix"))
    assert by_prefix.order is longest_prefix
    assert by_prefix.matches
    with pytest.raises(ConfigError, match=r"engine\.order"):
        policies(EngineConfig(order="random"))
    with pytest.raises(ConfigError, match=r"router\.placement"):
        placement("random", Latencies())
