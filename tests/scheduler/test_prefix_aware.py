"""What is lent is what both sides have in full blocks."""

import pytest

from scheduler.latency import Latencies
from scheduler.prefix_aware import PrefixAware
from tests.scheduler.test_placement import cluster, instance, prompt
from triptych.core.view import Coverage, Held, Prefix


@pytest.mark.parametrize(
    ("lender_block", "own_block", "held", "lent"),
    [(16, 16, 480, 480), (16, 12, 496, 480), (24, 16, 504, 480), (7, 5, 497, 490)],
)
def test_a_lent_prefix_is_full_blocks_of_both_sides(lender_block, own_block, held, lent):
    view = cluster(
        instance("P-0", load=10**9, kv=lender_block), instance("PD-1", kv=own_block, load=0)
    )
    coverage = Coverage({"P-0": Held((held, held, held))})
    route = PrefixAware(Latencies()).choose(view, prompt(length=500), coverage=coverage)
    assert route.prefill == "PD-1"
    assert route.prefix == Prefix("P-0", lent)


def test_a_prefix_shorter_than_a_block_of_both_sides_is_not_lent():
    view = cluster(instance("P-0", load=10**9, kv=16), instance("PD-1", kv=15))
    coverage = Coverage({"P-0": Held((224, 224, 224))})
    route = PrefixAware(Latencies()).choose(view, prompt(length=230), coverage=coverage)
    assert route.prefill == "PD-1"
    assert route.prefix is None
