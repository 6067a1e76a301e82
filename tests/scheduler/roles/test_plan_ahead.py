import msgspec
import pytest

from scheduler.planner.search import ROLES
from scheduler.roles.advice import advise, after, queue_s
from scheduler.roles.epdserve import EpdServe
from scheduler.roles.fleet import Fleet, Load, Standing, Switch, Waiting
from scheduler.roles.plan_ahead import Knobs, PlanAhead
from scheduler.roles.prospect import Prospect
from scheduler.roles.static import Static
from tests.scheduler.roles.fluid import CAPACITY, Fluid, load, members
from tests.scheduler.table import TABLE
from triptych.core.lifecycle import Stage

E, P, D = Stage
PROBLEM = TABLE.problem(TABLE.WORKLOADS["1 image"])


def planner(**changes):
    return PlanAhead(PROBLEM, Knobs(**changes))


def test_a_layout_that_serves_all_is_kept():
    fleet = Fluid("E2,P4,D2").run(planner(), lambda _: load(60.0), 300.0)
    assert fleet.switches == []


def test_a_layout_that_does_not_is_changed_and_then_serves_all():
    fleet = Fluid("E5,P2,D1").run(planner(), lambda _: load(100.0), 300.0)
    assert 1 <= len(fleet.switches) <= 4
    assert fleet.backlog == {E: 0.0, P: 0.0, D: 0.0}


def alternating(now_s):
    """Pictures, then long answers, in turns of 150 s."""
    is_text = (now_s // 150) % 2
    return load(200.0, 0.1, 600, 600, 250) if is_text else load(100.0)


def backlog_of(policy):
    """Tokens that waited, summed over ten minutes of alternating load."""
    fleet, total = Fluid("E5,P2,D1"), 0.0
    for _ in range(40):
        fleet.run(policy, alternating, 15.0)
        total += sum(fleet.backlog.values())
    return total, len(fleet.switches)


def test_less_waits_than_under_the_queue_rule_and_with_fewer_switches():
    ours, theirs, never = (backlog_of(each) for each in (planner(), EpdServe(), Static()))
    assert ours[0] < 0.5 * theirs[0] < never[0]
    assert ours[1] < theirs[1]


def test_combined_roles_may_be_forbidden():
    singles = ("E", "P", "D")
    fleet = Fluid("E5,P2,D1").run(planner(roles=singles), lambda _: load(100.0), 300.0)
    assert fleet.switches
    assert all(len(switch.role) == 1 for _, switch in fleet.switches)


def test_a_switch_that_costs_more_than_it_saves_is_not_made():
    quick, slow = (
        Fluid("E5,P2,D1").run(planner(switch_s=seconds), lambda _: load(100.0), 100.0)
        for seconds in (0.7, 1e6)
    )
    assert quick.switches
    assert slow.switches == []


def test_full_caches_and_queues_make_a_switch_dearer():
    policy = planner()
    empty, full = (
        policy._away_s(
            msgspec.structs.replace(
                members("P1,E1,D1")[0], kv_occupancy=share, waiting={P: Waiting(5, tokens)}
            ),
            load(100.0),
        )
        for share, tokens in ((0.0, 0), (1.0, 52_000))
    )
    assert empty == 0.7
    assert full == pytest.approx(0.7 + 1.0 + 0.3 * 30.0)


def test_an_instance_keeps_a_new_role_for_a_while():
    policy = planner(dwell_s=120.0)
    fleet = Fluid("E5,P2,D1").run(policy, alternating, 600.0)
    last = {}
    for at_s, switch in fleet.switches:
        assert at_s - last.get(switch.instance, -1e9) >= 120.0
        last[switch.instance] = at_s


def test_nothing_is_decided_while_an_instance_is_switching():
    found = list(members("E5,P2,D1"))
    found[0] = msgspec.structs.replace(found[0], standing=Standing.SWITCHING)
    assert planner().decide(Fleet(tuple(found), load(100.0)), 0.0) == ()
    assert planner().decide(Fleet(members("E5,P2,D1"), load(100.0)), 0.0) != ()


def test_a_rising_load_is_met_before_it_is_there():
    """The forecast switches while what is asked for can still be served."""
    policy, fleet = planner(deviations=0.0), Fluid("E4,P3,D1")
    worst = 0.0
    for _ in range(60):
        fleet.run(policy, lambda now_s: load(70.0 + now_s / 5.0), 5.0)
        worst = max(worst, fleet.backlog[P] / CAPACITY[P])
    assert fleet.switches
    assert worst < 1.0, "seconds of one prefill instance"


def test_the_prospect_takes_size_and_number_from_the_load():
    prospect = Prospect(PROBLEM)
    sample = prospect.outlook(Load()).work.demand
    asked = prospect.outlook(load(50.0, images=2.0, text=1000, output=300)).work.demand
    assert asked.mean(lambda one: one.visual) == pytest.approx(2 * 1196, rel=1e-3)
    assert asked.output.mean == pytest.approx(300, rel=1e-3)
    assert asked.mean(lambda one: one.computed) == pytest.approx(2392 + 1000, rel=1e-3)
    assert asked.rate == 50.0
    assert sample.rate == 0.0


def test_measured_speed_corrects_the_costs():
    prospect = Prospect(PROBLEM)
    fast = prospect.outlook(load(50.0))
    half = {stage: rate / 2 for stage, rate in CAPACITY.items()}
    slow = prospect.outlook(msgspec.structs.replace(load(50.0), capacity=half))
    assert slow.work.demand.encode.mean == pytest.approx(2 * fast.work.demand.encode.mean)
    assert slow.work.demand.prefill.mean == pytest.approx(2 * fast.work.demand.prefill.mean)


def test_what_is_not_above_the_mark_is_found_out_sooner():
    prospect = Prospect(PROBLEM)
    outlook = prospect.outlook(load(150.0))
    counts = {ROLES["E"]: 3, ROLES["P"]: 3, ROLES["D"]: 2}
    served = prospect.served(counts, outlook)
    assert 0.0 < served < 150.0
    assert prospect.served(counts, outlook, served + 1.0) == 0.0
    assert prospect.served(counts, outlook, served - 5.0) == served
    assert prospect.served({ROLES["E"]: 8}, outlook) == 0.0


def test_advice_names_the_queue_and_what_is_gained():
    found = list(members("E5,P2,D1"))
    found[5] = msgspec.structs.replace(found[5], waiting={P: Waiting(300, 436_800)})
    fleet = Fleet(tuple(found), load(100.0))
    policy = planner()
    switches = policy.decide(fleet, 0.0)
    (first, *_) = advise(fleet, switches, policy.prospect)
    assert first.instance == switches[0].instance
    assert (first.before, first.stage) == ("E", "prefill")
    assert first.queue_s == pytest.approx(4.2)
    assert first.attainment_after > first.attainment_before
    assert first.text.startswith(f"move {first.instance} to ")
    assert "queue of prefill 4.2 s at this rate; predicted attainment 0.00 -> " in first.text


def test_advice_without_a_prediction_or_a_queue():
    fleet = Fleet(members("E5,P2,D1"))
    (one,) = advise(fleet, [Switch("i0", frozenset({D}), "text")])
    assert one.text == "move i0 to decode of group text: more decode will be needed"
    assert one.attainment_before is None
    assert advise(fleet, []) == ()


def test_queues_in_seconds_are_over_all_that_serve():
    waiting = {D: Waiting(100, 1)}
    found = [msgspec.structs.replace(one, waiting=waiting) for one in members("E1,P1,D2")[2:]]
    fleet = Fleet(tuple(found), load(10.0))
    assert queue_s(fleet, D) == pytest.approx(200 * 140 / 40_000)
    assert queue_s(fleet, E) == 0.0


def test_counts_after_a_decision():
    fleet = Fleet(members("E2,P1,D1"))
    switches = [Switch("i0", frozenset({P, D}))]
    assert after(fleet, switches) == {ROLES[name]: 1 for name in ("E", "P", "D", "PD")}
