"""Figures of runs, checked against numbers worked out by hand."""

import msgspec
import pytest

from bench.figures import at_shares, counted, figures, joined, samples, ttft_parts
from bench.run import Busy, Row, Run
from triptych.core.metrics import is_attained, latency, percentile
from triptych.core.request import Slo


def row(arrival, *times, status="ok", slo="interactive", **more):
    end = times[-1] if times else arrival + 0.5
    return Row(
        id=f"r{arrival}", arrival_s=arrival, slo=slo, ttft_slo_s=1.0, tpot_slo_s=0.15,
        num_images=1, image_tokens=10, prompt_tokens=100, status=status, end_s=end,
        token_times_s=times, **more,
    )  # fmt: skip


def run(*rows, **more):
    values = {"duration_s": 10.0, "num_gpus": 2.0, "warmup_s": 2.0, **more}
    return Run(system="S", workload="w", rate=1.0, seed=0, rows=rows, **values)


GOOD = row(3.0, 3.5, 3.6, 3.7, cached_tokens=50)
LATE = row(4.0, 5.5, 5.6)
SLOW = row(5.0, 5.5, 6.5)
ROWS = (
    row(1.0, 9.0, 9.1),  # in the warm-up, and late; its tokens come behind it
    GOOD,
    LATE,
    SLOW,
    row(6.0, status="refused"),
    row(7.0, 7.2, status="timeout"),
    row(8.0, 8.4),
    row(9.0, status="failed", slo="strict"),
)


def test_attainment_counts_every_request_that_arrived():
    found = figures(run(*ROWS))
    assert found.requests == 7, "the one in the warm-up counts nowhere"
    assert found.outcomes == {"ok": 4, "refused": 1, "timeout": 1, "failed": 1}
    assert found.attainment == pytest.approx(2 / 7)
    assert found.classes["strict"].attainment == 0.0
    assert found.classes["interactive"].attainment == pytest.approx(2 / 6)
    assert found.effective_requests_per_s == pytest.approx(2 / 8)
    assert found.effective_requests_per_gpu == pytest.approx(2 / 16)
    assert found.gpu_s_per_success == pytest.approx(8.0)
    assert found.cost_per_success(3.6) == pytest.approx(8.0 * 3.6 / 3600)
    assert found.effective_tokens_per_s == pytest.approx(4 / 8)


def test_latency_is_of_the_answered_ones():
    found = figures(run(*ROWS))
    assert found.ttft_s.count == 4
    assert (found.ttft_s.p50, found.ttft_s.greatest) == (pytest.approx(0.5), pytest.approx(1.5))
    assert found.tpot_s.count == 3, "an answer of one token has no gap"
    assert found.tpot_s.p50 == pytest.approx(0.1)
    assert found.itl_s.count == 4
    assert found.itl_s.greatest == pytest.approx(1.0)
    assert found.whole_s.greatest == pytest.approx(1.6)


def test_throughput_is_of_the_time_behind_the_warm_up():
    found = figures(run(*ROWS))
    assert found.requests_per_s == pytest.approx(5 / 8), "the early one ended in it"
    assert found.tokens_per_s == pytest.approx((2 + 3 + 2 + 2 + 1 + 1) / 8)


def test_reuse_and_energy():
    found = figures(run(*ROWS, joules=110.0))
    assert found.cached_share == pytest.approx(50 / 400)
    assert found.reused_share == pytest.approx(1 / 4)
    assert found.joules_per_token == pytest.approx(110.0 / 11)
    assert figures(run(*ROWS)).joules_per_token is None


def test_use_counts_the_instances_that_do_the_work_and_no_time_twice():
    busy = (
        Busy("e0", "encode", 0.0, 4.0),
        Busy("e1", "encode", 6.0, 8.0),
        Busy("e1", "encode", 7.0, 9.0),
        Busy("p0", "prefill", 9.0, 12.0),
    )
    found = figures(run(*ROWS, busy=busy)).utilisation
    assert found == {"encode": pytest.approx(5 / 16), "prefill": pytest.approx(1 / 8)}


def test_phases_are_explained_up_to_the_first_token():
    plain = row(0.0, 1.0, 1.1, phases={"queue": 0.2, "prefill": 0.5, "decode": 0.1})
    overlapping = row(0.0, 1.0, 1.1, phases={"encode": 1.5, "prefill": 0.5})
    assert ttft_parts([plain])["other"] == pytest.approx(0.3)
    both = ttft_parts([plain, overlapping, GOOD])
    assert sum(both.values()) == pytest.approx(1.0), "they sum to the mean TTFT of those that tell"
    assert both["encode"] == pytest.approx(0.75 / 2)
    assert ttft_parts([GOOD]) == {}


def test_pooled_runs_are_their_requests_together():
    first, second = run(GOOD, LATE), run(SLOW)
    pooled = figures([first, second])
    assert pooled.requests == 3
    assert pooled.effective_requests_per_s == pytest.approx(1 / 16)
    whole = joined([samples(first), samples(second)])
    assert figures([first, second], whole=whole) == pooled
    one = figures(run(GOOD, LATE, SLOW))
    assert (one.ttft_s, one.classes) == (pooled.ttft_s, pooled.classes)


def test_a_warm_up_that_leaves_nothing_is_said():
    with pytest.raises(ValueError, match="warmup_s"):
        figures(run(GOOD, warmup_s=10.0))


def test_no_request_no_figures():
    found = figures(run())
    assert found.attainment == 0.0
    assert found.gpu_s_per_success is None and found.cost_per_success(1.0) is None
    assert found.ttft_s.count == found.itl_s.count == 0


def test_p90_pace_is_another_promise():
    slow_once = latency(0.0, [0.1, *(0.1 + 0.01 * n for n in range(1, 9)), 0.4])
    slo = Slo("x", 1.0, 0.05)
    assert is_attained(slow_once, slo)
    assert not is_attained(slow_once, slo, "p90")
    single = row(3.0, 3.1, *(3.1 + 0.01 * n for n in range(1, 9)), 3.4)
    single = msgspec.structs.replace(single, tpot_slo_s=0.05)
    assert [figures(run(single), pace).attainment for pace in ("mean", "p90")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(100, 0.5, 50), (100, 0.99, 99), (100, 0.07, 7), (3, 0.5, 2), (1, 0.99, 1), (10, 0.0, 1)],
)
def test_percentiles_are_nearest_rank(count, share, expected):
    assert percentile(list(range(1, count + 1)), share) == expected
    counted_us = {value * 1_000_000: 1 for value in range(1, count + 1)}
    assert at_shares(counted_us, [share]) == [expected]


def test_warm_up_ends_where_it_says():
    assert [each.arrival_s for each in counted(run(*ROWS, warmup_s=5.0))] == [5, 6, 7, 8, 9]
