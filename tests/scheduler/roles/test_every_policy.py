"""What holds for every policy of roles, whatever it is shown."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.planner.search import ROLES
from scheduler.roles import ROLE_POLICIES
from scheduler.roles.fleet import Fleet, Load, Member, Standing, Switch, Waiting, is_safe
from tests.scheduler.roles.fluid import CAPACITY, Fluid, load
from tests.scheduler.table import TABLE
from triptych.core.lifecycle import Stage

E, P, D = Stage
MOST = {"static": 0, "epdserve": 1, "modserve": 8, "elasticmm": 4, "plan_ahead": 2}
"""Switches of one decision."""
PERIOD_S = {"static": 1.0, "epdserve": 5.0, "modserve": 30.0, "elasticmm": 5.0, "plan_ahead": 5.0}
"""The shortest time between two decisions."""


def make(name):
    return ROLE_POLICIES[name](TABLE.problem(TABLE.WORKLOADS["1 image"]))


@st.composite
def fleets(draw):
    roles = draw(st.lists(st.sampled_from(list(ROLES.values())), min_size=1, max_size=9))
    rate = draw(st.sampled_from([0.0, 1.0, 60.0, 400.0]))
    shape = {
        "images": draw(st.sampled_from([0.0, 0.3, 1.0, 6.0])),
        "visual": draw(st.sampled_from([144, 1196])),
        "text": draw(st.integers(1, 3000)),
        "output": draw(st.integers(1, 1000)),
    }
    standings = st.sampled_from([Standing.READY] * 5 + [Standing.SWITCHING, Standing.DRAINING])
    waits = st.builds(Waiting, st.integers(0, 200), st.integers(0, 200_000))
    found = [
        Member(
            f"i{n}",
            role,
            draw(standings),
            {stage: draw(waits) for stage in role},
            running=draw(st.integers(0, 64)),
            attainment={"interactive": draw(st.sampled_from([0.5, 1.0]))},
            kv_occupancy=draw(st.floats(0.0, 1.0)),
            group=draw(st.sampled_from(["", "text", "multimodal"])),
        )
        for n, role in enumerate(roles)
    ]
    asked = load(rate, **shape)
    groups = {"text": load(rate / 2, **{**shape, "images": 0.0}), "multimodal": asked}
    return Fleet(tuple(found), asked, groups)


@pytest.mark.parametrize("name", ROLE_POLICIES)
@settings(max_examples=25, deadline=None)
@given(shown=st.lists(st.tuples(fleets(), st.floats(0.1, 400.0)), min_size=1, max_size=4))
def test_any_answer_is_safe_small_and_the_same_again(name, shown):
    """Never empties a stage, never names an instance that is not there or not ready, stays within
    its number of switches, keeps to its period, and is deterministic."""
    first, second = make(name), make(name)
    now_s, decided_s = 0.0, float("-inf")
    for fleet, passed_s in shown:
        now_s += passed_s
        switches = list(first.decide(fleet, now_s))
        assert switches == list(second.decide(fleet, now_s))
        assert is_safe(fleet, switches)
        assert len(switches) <= MOST[name]
        known = {one.id: one.role for one in fleet.members}
        assert all(switch.instance in known and switch.role for switch in switches)
        if switches:
            assert now_s - decided_s >= PERIOD_S[name] - 1e-9
            decided_s = now_s


@pytest.mark.parametrize("name", ROLE_POLICIES)
@pytest.mark.parametrize("topology", ["E3,P3,D2", "E1,P6,D1", "E5,P2,D1", "E2,PD6", "EPD8"])
@pytest.mark.parametrize("rate", [20.0, 90.0])
def test_a_load_that_can_be_served_and_stays_ends_in_no_more_switches(name, topology, rate):
    """No oscillation: after five minutes, and ten for ModServe's two periods, nothing moves."""
    fleet = Fluid(topology).run(make(name), lambda _: load(rate), 1500.0)
    late = [at_s for at_s, _ in fleet.switches if at_s > 600.0]
    assert late == []
    assert sum(fleet.counts().values()) == 8


@pytest.mark.parametrize("name", ROLE_POLICIES)
def test_idle_fleets_stay_as_they_are(name):
    fleet = Fluid("E3,P3,D2").run(make(name), lambda _: Load(capacity=CAPACITY), 700.0)
    settled = Counter(fleet.counts())
    assert settled == Fluid("E3,P3,D2").counts() or name == "modserve"
    assert len(fleet.switches) <= 2


READY = Member("a", frozenset({E}))
SWITCHING = Member("b", frozenset({E}), Standing.SWITCHING)
OTHER = Member("c", frozenset({E, P}))


@pytest.mark.parametrize(
    ("members", "moved", "safe"),
    [
        ([READY, OTHER], ["a"], True),
        ([READY, OTHER], ["c"], False),
        ([READY, SWITCHING], ["a"], False),
        ([READY, SWITCHING, OTHER], ["b"], False),
        ([READY, OTHER], ["a", "a"], False),
        ([READY, OTHER], ["x"], False),
        ([READY, OTHER], [], True),
    ],
)
def test_what_is_safe(members, moved, safe):
    switches = [Switch(name, frozenset({D})) for name in moved]
    assert is_safe(Fleet(tuple(members)), switches) is safe
