"""Which of a pair's ways is believed: the one in use, of instances that live."""

import pytest

from scheduler.latency import HALF_LIFE, PRIOR_BYTES_PER_S, PRIOR_LATENCY_S, Latencies
from triptych.core.catalog import LinkReport

MEGABYTE = 1_000_000


def shm(giver="P-0@0", rate=8e9, failovers=0):
    return LinkReport(giver, "shm", 0.0, rate, failovers)


def tcp(giver="P-0@0", rate=1e6, failovers=0):
    return LinkReport(giver, "tcp", 0.0, rate, failovers)


def seconds(latencies, giver="P-0@0", taker="D-0@0"):
    return latencies.transfer_s(giver, taker, MEGABYTE)


def test_a_fast_way_that_broke_before_it_was_measured_is_not_believed():
    latencies = Latencies()
    latencies.report("D-0@0", [shm(failovers=1), tcp()])
    assert seconds(latencies) == pytest.approx(1.0)
    latencies.report("D-0@0", [shm(failovers=9), tcp(rate=5e5)])
    assert seconds(latencies) == pytest.approx(2.0)
    assert latencies.num_failovers == 9


def test_the_way_measured_last_is_believed_and_stays_so_while_nothing_is_measured():
    latencies = Latencies()
    latencies.report("D-0@0", [shm(), tcp()])
    assert seconds(latencies) < 0.01
    latencies.report("D-0@0", [shm(failovers=1), tcp(rate=5e5)])
    assert seconds(latencies) == pytest.approx(2.0), "shm broke and tcp was taken"
    latencies.report("D-0@0", [shm(rate=7e9, failovers=1), tcp(rate=5e5)])
    assert seconds(latencies) < 0.01, "shm is back"
    latencies.report("D-0@0", [shm(rate=7e9, failovers=1), tcp(rate=5e5), tcp("P-1@0")])
    assert seconds(latencies) < 0.01, "nothing new of this pair"
    latencies.report("D-0@0", [tcp(rate=5e5)])
    assert seconds(latencies) == pytest.approx(2.0, rel=0.05), "only what is told counts"


@pytest.mark.parametrize("ways", [(shm("P-0@9"), tcp("P-0@10")), (tcp("P-0@10"), shm("P-0@9"))])
def test_the_dead_incarnation_of_a_giver_says_nothing_of_the_next(ways):
    latencies = Latencies()
    latencies.report("D-0@0", ways)
    assert seconds(latencies, "P-0@10") == pytest.approx(1.0)


def test_the_late_word_of_a_dead_taker_is_not_believed_and_the_next_one_inherits():
    latencies = Latencies()
    latencies.report("D-0@9", [tcp()])
    assert seconds(latencies, taker="D-0@10") == pytest.approx(1.0)
    latencies.report("D-0@10", [tcp(rate=5e5)])
    latencies.report("D-0@9", [tcp(rate=9e9)])
    assert seconds(latencies, taker="D-0@10") == pytest.approx(2.0)


def test_a_link_that_was_slow_once_is_doubted_while_others_are_measured():
    latencies = Latencies()
    latencies.report("D-0@0", [tcp(rate=1e6)])
    before, rates = seconds(latencies), [1e8, 1.1e8]
    assert before == pytest.approx(1.0)
    for number in range(2 * HALF_LIFE):  # there are two links
        latencies.report("D-1@0", [tcp(rate=rates[number % 2])])
    fast = seconds(latencies, taker="D-1@0")
    assert fast == pytest.approx(0.01, rel=0.2)
    assert seconds(latencies) == pytest.approx((before + fast) / 2, rel=0.1)
    latencies.report("D-0@0", [tcp(rate=9e5)])
    assert seconds(latencies) == pytest.approx(1 / 0.9), "measured anew, believed anew"


def test_a_link_is_not_compared_with_those_of_another_transport():
    latencies = Latencies()
    latencies.report("D-0@0", [tcp(rate=1e6)])
    for number in range(10 * HALF_LIFE):
        latencies.report("D-1@0", [shm(rate=8e9 + number)])
    assert seconds(latencies) == pytest.approx(1.0)


def test_a_pair_of_which_nothing_was_told_has_the_prior():
    latencies = Latencies()
    latencies.report("D-0@0", [tcp("P-1@0")])
    assert seconds(latencies) == PRIOR_LATENCY_S + MEGABYTE / PRIOR_BYTES_PER_S
