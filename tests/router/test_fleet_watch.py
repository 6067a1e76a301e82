"""What a router knows of its instances: jobs by what they wait for, loads over windows."""

import msgspec
import pytest

from router.fleet_watch import Answer, FleetWatch
from router.occupancy import Occupancy
from router.role_advice import RoleAdviser
from scheduler.planner.demand import Shape
from scheduler.roles.capacity import Typical, capacities
from scheduler.roles.fleet import Standing, Waiting
from triptych.core.config import EngineConfig
from triptych.core.errors import ConfigError
from triptych.core.event import Encoded, Finished, Timing, Token, Tokens
from triptych.core.handoff import EncodeJob, Endpoint, JobHeader, LanguageJob, TransferRef
from triptych.core.ids import ContentHash, Handle, InstanceId, JobId, SessionId
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.request import Item, Prompt, Sampling, Slo, StopRule
from triptych.core.view import ClusterView, Description, InstanceView

E, P, D = Stage.ENCODE, Stage.PREFILL, Stage.DECODE
ITEM = Item(ContentHash(b"x" * 32), 3, 50, (1, 10, 20))
PROMPT = Prompt(tuple(range(60)), (ITEM,))


class Hand:
    """A clock that is set by hand."""

    now_s = 100.0

    def now(self):
        return self.now_s


def ref(name):
    return TransferRef(Handle("h"), 0, InstanceId(name), Endpoint(machine="m"), "layout", 60)


def header(stage):
    return JobHeader(JobId(f"req/0/0/{stage}"), SessionId("s"), 0, 10.0, b"")


def jobs(number=1, combined=False):
    """Of one attempt, in the order in which they are sent."""
    encodes = [
        EncodeJob(header(f"encode{index}"), ITEM, b"", "PNG", Handle("h"))
        for index in range(number)
    ]
    work = LanguageJob(
        header=header("decode"), prompt=PROMPT, sampling=Sampling(), stop=StopRule(9)
    )
    if combined:
        return encodes, None, work
    prefill = msgspec.structs.replace(work, header=header("prefill"), publish=Handle("k"))
    return encodes, prefill, msgspec.structs.replace(work, kv=ref("p"))


def drew(job):
    return Tokens(job.header.id, (Token(0, 5),))


def test_a_job_waits_when_its_input_is_there():
    clock = Hand()
    seen = Occupancy(clock)
    encodes, prefill, decode = jobs(2)
    for job, name in [*((each, "e") for each in encodes), (prefill, "p"), (decode, "d")]:
        seen.sent(InstanceId(name), job)
    assert seen.of("e").waiting == {E: Waiting(2, 100)}
    assert seen.of("p").waiting == seen.of("d").waiting == {}
    clock.now_s += 2.0
    for each in encodes:
        assert seen.of("p").waiting == {}
        seen.told(Encoded(each.header.id, Timing()))
        seen.over(each.header.id)
    assert seen.of("p").waiting == {P: Waiting(1, 60)}
    assert seen.of("e").busy_s == 2.0
    clock.now_s += 1.0
    seen.told(drew(prefill))
    assert seen.of("p").waiting == {}
    assert seen.of("d").waiting == {D: Waiting(1, 60)}
    assert seen.of("d").running == 0
    seen.told(drew(decode))
    assert seen.of("d").waiting == {}
    assert (seen.of("d").running, seen.of("d").context_tokens) == (1, 60)
    clock.now_s += 4.0
    assert seen.of("d").busy_s == 4.0
    for job in (prefill, decode):
        seen.told(Finished(job.header.id, "length", Timing()))
        seen.over(job.header.id)
    clock.now_s += 9.0
    assert (seen.of("p").busy_s, seen.of("d").busy_s) == (1.0, 4.0)
    seen.keep([InstanceId("d")])
    assert seen.of("p").busy_s == 0.0


def test_one_instance_may_do_both():
    seen = Occupancy(Hand())
    (encode,), _, work = jobs(combined=True)
    seen.sent("e", encode)
    seen.sent("pd", work)
    assert seen.of("pd").waiting == {}
    seen.told(Encoded(encode.header.id, Timing()))
    assert seen.of("pd").waiting == {P: Waiting(1, 60)}
    seen.told(drew(work))
    assert (seen.of("pd").waiting, seen.of("pd").running) == ({}, 1)


def test_what_is_abandoned_leaves_nothing():
    """In any order, at any point, and more than once."""
    for point in range(5):
        seen = Occupancy(Hand())
        (encode,), prefill, decode = jobs()
        steps = [
            lambda s, j: s.sent("e", j[0]),
            lambda s, j: s.sent("p", j[1]),
            lambda s, j: s.sent("d", j[2]),
            lambda s, j: s.told(Encoded(j[0].header.id, Timing())),
            lambda s, j: s.told(drew(j[1])),
        ]
        made = encode, prefill, decode
        for step in steps[: point + 1]:
            step(seen, made)
        for job in (*made, *made):
            seen.over(job.header.id)
            seen.told(drew(job))
        for name in "epd":
            assert seen.of(name).waiting == {}
            assert seen.of(name).running == 0
        seen.keep([])
        assert not seen._counts
        assert not seen._attempts


def view(*members):
    return ClusterView(
        tuple(
            InstanceView(
                Description(
                    InstanceId(name), role, "m", Endpoint(machine="m"), None, None, 0, 0, 0, 0, {}
                ),
                state,
                {},
                {},
            )
            for name, role, state in members
        )
    )


class Half:
    """Costs of a device that is linear in everything."""

    def vision_s(self, pictures):
        return sum(pictures) / 1000

    def language_s(self, chunks, num_decodes, context):
        return sum(length for _, length in chunks) / 2000 + num_decodes / 1000

    def decode_run_s(self, num_decodes, context, steps):
        return steps * num_decodes / 1000


def watch_of(clock, *members, costs=None):
    return FleetWatch(clock, lambda: view(*members), EngineConfig(), costs)


READY, DRAINING = InstanceState.READY, InstanceState.DRAINING


def test_places_between_two_roles_are_switching():
    watch = watch_of(
        Hand(), ("a-0@0", (E,), READY), ("b-0@0", (P,), DRAINING), ("c-0@0", (D,), DRAINING)
    )
    moving = {"b-0": frozenset({D}), "gone-0": frozenset({E})}
    standing = {one.id: (one.role, one.standing) for one in watch.fleet(moving).members}
    assert standing == {
        "a-0@0": (frozenset({E}), Standing.READY),
        "b-0@0": (frozenset({D}), Standing.SWITCHING),
        "c-0@0": (frozenset({D}), Standing.DRAINING),
        "gone-0": (frozenset({E}), Standing.SWITCHING),
    }


def test_loads_are_of_a_window_and_of_what_was_answered():
    clock = Hand()
    watch = watch_of(clock, ("a-0@0", (E, P, D), READY), costs=Half())
    clock.now_s += 100.0
    for _ in range(20):
        watch.arrived(PROMPT, Slo("interactive", 2.0, 0.05))
        watch.arrived(Prompt(tuple(range(40))), Slo("strict", 1.0, 0.01))
    shape = Shape((50,), 60, 30, 15, "interactive")
    for is_attained in (True, False, True, True):
        watch.answered(Answer("interactive", is_attained, ("a-0@0",), shape))
    watch.answered(Answer("strict", False, ("a-0@0", "b-0@0")))
    (member,) = watch.fleet().members
    assert member.attainment == {"interactive": 0.75, "strict": 0.0}
    load, groups = watch.fleet().load, watch.fleet().groups
    assert (load.requests, load.images) == (4.0, 2.0)
    # A quarter of the prompts answered was cached; answers had 30 tokens.
    assert (load.visual, load.text) == (0.75 * 100.0, 0.75 * 100.0)
    assert load.output == 4.0 * 30
    assert groups["text"].text == 0.75 * 80.0
    assert groups["multimodal"].visual == 0.75 * 100.0
    assert load.capacity == {E: 1000.0, P: 2000.0, D: 1000.0}
    clock.now_s += 11.0
    assert watch.fleet().load.requests == 0.0
    clock.now_s += 20.0
    assert watch.fleet().members[0].attainment == {}


def test_capacities_keep_the_bound_between_tokens():
    typical = Typical(picture=100, prompt=500, output=100, tpot_s=0.0075)

    class Counted(Half):
        def language_s(self, chunks, num_decodes, context):
            return 0.004 + super().language_s(chunks, num_decodes, context)

    found = capacities(Counted(), typical, 256, 64)
    assert found[P] == pytest.approx(500 / (0.25 + 2 * 0.004))
    assert found[D] == pytest.approx(3 / 0.007)
    assert capacities(Counted(), Typical(), 256, 64) == {}


def test_a_policy_that_predicts_needs_costs():
    watch = watch_of(Hand(), ("a-0@0", (E, P, D), READY))
    with pytest.raises(ConfigError, match=r"router\.roles: plan_ahead predicts"):
        RoleAdviser("plan_ahead", watch, None)
    with pytest.raises(ConfigError, match=r"router\.roles: 'tarot' is not one of elasticmm, epd"):
        RoleAdviser("tarot", watch, None)
    adviser = RoleAdviser("elasticmm", watch, None)
    assert adviser.missing(watch.fleet()) == [
        "no costs of steps are known: no capacities, no predictions",
        "instances have no modality groups: all count as multimodal",
    ]
