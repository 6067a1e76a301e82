import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.planner.demand import Moments
from scheduler.planner.queueing import (
    OVERLOADED,
    Wait,
    departure_cv2,
    md1_ttft_s,
    sharded_s,
    wait,
    within,
)


@given(service=st.floats(0.001, 10.0), load=st.floats(0.01, 0.99))
def test_constant_service_is_distserves_equation(service, load):
    """Equation 1 of DistServe (OSDI 2024): D + R D^2 / (2 (1 - R D))."""
    rate = load / service
    published = service + rate * service**2 / (2 * (1 - rate * service))
    assert md1_ttft_s(rate, service) == pytest.approx(published, rel=1e-9)


@given(service=st.floats(0.001, 10.0), load=st.floats(0.01, 0.95))
def test_two_stages_of_a_pipeline_are_distserves_second_equation(service, load):
    """Equation 2: D + R D^2 / (4 (2 - R D)): the queue sees half the time, the request all."""
    rate, half = load / service, Moments(service / 2, service**2 / 4)
    published = service + rate * service**2 / (4 * (2 - rate * service))
    assert service + wait(rate, half, 1.0).mean_s == pytest.approx(published, rel=1e-9)


@given(mean=st.floats(0.01, 5.0), cv2=st.floats(0.0, 9.0), load=st.floats(0.01, 0.99))
def test_one_server_is_pollaczek_and_khinchines(mean, cv2, load):
    second = mean**2 * (1 + cv2)
    rate = load / mean
    published = rate * second / (2 * (1 - load))
    assert wait(rate, Moments(mean, second), 1.0).mean_s == pytest.approx(published, rel=1e-6)


def erlang_c_s(rate, mean, servers):
    """Mean wait of M/M/c, exactly."""
    offered = rate * mean
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    waits = servers * blocked / (servers - offered * (1 - blocked))
    return waits, waits * mean / (servers - offered)


@pytest.mark.parametrize("servers", [1, 2, 5, 16])
@pytest.mark.parametrize("load", [0.5, 0.7, 0.9, 0.97])
def test_several_servers_are_near_erlangs(servers, load):
    rate = load * servers
    exact = erlang_c_s(rate, 1.0, servers)[1]
    found = wait(rate, Moments(1.0, 2.0), float(servers)).mean_s
    assert found == pytest.approx(exact, rel=0.12, abs=0.025)


def lindley(rate, draw, number, seed):
    """Waits of a queue at one server, simulated."""
    source = random.Random(seed)
    waits, waiting = [], 0.0
    for _ in range(number):
        waits.append(waiting)
        waiting = max(0.0, waiting + draw(source) - source.expovariate(rate))
    return waits


def test_simulated_mean_of_a_constant_service_is_within_two_percent():
    waits = lindley(0.7, lambda _: 1.0, 400_000, 1)
    simulated = 1.0 + sum(waits) / len(waits)
    assert simulated == pytest.approx(md1_ttft_s(0.7, 1.0), rel=0.02)


@pytest.mark.parametrize("slack", [0.5, 2.0, 5.0])
def test_simulated_share_in_time(slack):
    """The tail is exponential by assumption: right to a few hundredths, not exactly."""

    def draw(source):
        return source.choice((0.2, 0.2, 0.2, 1.4))

    moments = Moments(0.5, (3 * 0.04 + 1.96) / 4)
    waits = lindley(1.4, draw, 200_000, 2)
    simulated = sum(one <= slack for one in waits) / len(waits)
    assert within(wait(1.4, moments, 1.0), Wait(), slack) == pytest.approx(simulated, abs=0.05)


def test_more_than_the_servers_can_do_never_ends():
    assert wait(2.0, Moments(1.0, 1.0), 2.0) == OVERLOADED
    assert within(OVERLOADED, Wait(), 1e9) == 0.0
    assert math.isinf(md1_ttft_s(1.0, 1.0))


def test_nothing_to_do_is_no_wait():
    assert wait(0.0, Moments(1.0, 1.0), 1.0) == wait(3.0, Moments(), 1.0) == Wait()
    assert within(Wait(), Wait(), 0.0) == 1.0
    assert within(Wait(), Wait(), -1e-9) == 0.0


@pytest.mark.parametrize("tails", [(1.0, 1.0), (1.0, 1.0 + 1e-9), (0.3, 2.0), (2.0, 0.3)])
def test_two_waits_in_a_row(tails):
    source = random.Random(3)
    waits = Wait(0.6, 0.6 * tails[0]), Wait(0.8, 0.8 * tails[1])
    hits = 0
    for _ in range(100_000):
        total = sum(
            source.expovariate(1 / one.tail_s) for one in waits if source.random() < one.probability
        )
        hits += total <= 1.5
    assert within(*waits, 1.5) == pytest.approx(hits / 100_000, abs=0.006)


@given(
    first=st.tuples(st.floats(0.01, 1), st.floats(0.001, 5)),
    second=st.tuples(st.floats(0, 1), st.floats(0.001, 5)),
    slacks=st.tuples(st.floats(0, 20), st.floats(0, 20)),
)
def test_more_time_is_never_worse(first, second, slacks):
    waits = [Wait(p, p * tail) for p, tail in (first, second)]
    less, more = sorted(slacks)
    assert 0.0 <= within(*waits, less) <= within(*waits, more) + 1e-9 <= 1.0 + 2e-9


def test_a_wait_that_is_next_to_none_is_none():
    assert within(Wait(5e-324, 0.0), Wait(0.5, 1.0), 0.0) == 0.5


def test_little_load_passes_arrivals_on_and_full_load_its_own_services():
    assert departure_cv2(0.0, 4.0, 0.5, 1.0) == 4.0
    assert departure_cv2(1.0, 4.0, 0.5, 1.0) == 0.5


@given(
    pieces=st.lists(st.floats(0.01, 5.0), max_size=12).map(lambda x: tuple(sorted(x)[::-1])),
    servers=st.integers(1, 6),
)
def test_shards_are_within_grahams_bounds(pieces, servers):
    seconds = sharded_s(pieces, servers)
    if not pieces:
        assert seconds == 0.0
        return
    least = max(pieces[0], sum(pieces) / servers)
    most = sum(pieces) / servers + (1 - 1 / servers) * pieces[0]
    assert least - 1e-9 <= seconds <= most + 1e-9
