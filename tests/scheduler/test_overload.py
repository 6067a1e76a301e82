"""Queues that stand, and who is let in behind one."""

import msgspec

from scheduler.overload import INTERVAL_S, STANDING_S, Load, Standing, judge
from triptych.core.request import Slo
from triptych.core.view import Expected

LOOSE = Slo("loose", 60.0, 1.0)
LONG = 2 * STANDING_S


def test_a_burst_is_no_standing_queue():
    standing = Standing()
    assert not standing.seen(0.0, 0.0)
    assert not standing.seen(0.1, LONG)
    assert not standing.seen(0.1 + 0.9 * INTERVAL_S, LONG)
    assert not standing.seen(0.1 + 0.95 * INTERVAL_S, 0.0)
    assert not standing.seen(0.1 + 1.5 * INTERVAL_S, LONG)


def test_a_queue_that_is_long_for_an_interval_stands_until_it_is_short_for_one():
    standing = Standing()
    standing.seen(0.0, 0.0)
    assert standing.seen(INTERVAL_S, LONG)
    assert standing.seen(1.5 * INTERVAL_S, 0.0)
    assert standing.seen(1.6 * INTERVAL_S, LONG)
    assert standing.seen(2.5 * INTERVAL_S, 0.0)
    assert not standing.seen(2.7 * INTERVAL_S, 0.0)


def test_behind_a_standing_queue_the_loosest_bounds_do_not_help():
    load = Load(Expected(0.1, 0.01), ahead_s=LONG, is_standing=True)
    assert not judge(LOOSE, load, 0.9, lambda: None).is_accepted
    short = msgspec.structs.replace(load, ahead_s=STANDING_S)
    assert judge(LOOSE, short, 0.9, lambda: None).is_accepted
    burst = msgspec.structs.replace(load, is_standing=False)
    assert judge(LOOSE, burst, 0.9, lambda: None).is_accepted
    idle = msgspec.structs.replace(load, is_idle=True)
    assert judge(LOOSE, idle, 0.9, lambda: None).is_accepted
