"""Runs of steps: how long they may be."""

from triptych.cache.kv import KvCache
from triptych.engine.runs import most_steps


def test_a_step_without_work_is_one_step():
    """Such a step tells of outcomes only."""
    cache = KvCache(8, 4, "model")
    assert most_steps([], [], cache, 4096) == 1
