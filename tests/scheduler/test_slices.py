"""Which slice of a device pictures get: the smallest that is in time, all of it if nobody minds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import registry
from scheduler.prior import Prior
from scheduler.slices import LONGEST_S, PART, Slices, slowed
from tests.scheduler import drawn
from tests.scheduler.drawn import visual
from triptych.core.config import EngineConfig
from triptych.core.plan import ETA, SLICES
from triptych.engine.policies import Beside, Moment

COSTS = Prior(step_s=0.0, token_s=0.0, pair_s=0.0, decode_s=0.01, context_s=0.0,
              vision_step_s=0.0, vision_token_s=0.001)  # fmt: skip
"""A picture of 100 tokens takes 0.1 s on all of the device, a decode step 10 ms a sequence."""
SMALL = 50
"""Tokens of a picture that may take any slice for as long as it takes there."""
NOW, S = Moment(drawn.NOW_S), drawn.NOW_S
DECODES = Beside(num_decodes=2, context=500, tpot_s=0.05)


def split(pictures, beside, moment):
    """The first of them is the step."""
    return Slices(COSTS).split(pictures[:1], pictures[1:], beside, moment)


def due_in(seconds):
    """That long if it has ``seconds`` to spend on a slice."""
    return S + seconds / PART


@pytest.mark.parametrize("share", SLICES)
def test_the_smallest_slice_that_is_in_time(share):
    takes_s = slowed(0.05, share)
    picture = visual(0, SMALL, due_s=due_in(takes_s * 1.01))
    assert split([picture], DECODES, NOW) == share
    hurried = visual(0, SMALL, due_s=due_in(takes_s * 0.99))
    assert split([hurried], DECODES, NOW) > share or share == SLICES[-1]


def test_all_that_wait_count_one_after_the_other():
    patient = [visual(n, SMALL, due_s=due_in(0.175)) for n in range(3)]
    assert split(patient[:1], DECODES, NOW) == 0.25
    assert split(patient[:2], DECODES, NOW) == 0.5
    assert split(patient, DECODES, NOW) == SLICES[-1]


def test_the_stages_behind_get_their_time():
    picture = visual(0, SMALL, due_s=S + 2.0)
    assert split([picture], DECODES, NOW) == 0.25
    later = visual(0, SMALL, due_s=S + 2.0, later_s=1.8)
    assert split([later], DECODES, NOW) == 0.5


def test_without_a_bound_the_deadline_counts():
    assert split([visual(0, SMALL, end_s=S + 60.0)], DECODES, NOW) == 0.25
    assert split([visual(0, SMALL, end_s=S + 0.05)], DECODES, NOW) == SLICES[-1]


def test_nobody_beside_leaves_all_of_it():
    assert split([visual(0, SMALL, due_s=S + 60.0)], Beside(), NOW) == 1.0
    assert split([visual(0, SMALL, due_s=S + 60.0)], Beside(num_prefills=1), NOW) == 0.25


def test_late_pictures_get_all_only_where_decodes_can_wait_for_a_step():
    late = visual(0, due_s=S - 1.0)
    assert split([late], DECODES, NOW) == SLICES[-1]
    patient = DECODES._replace(tpot_s=0.13)
    assert split([late], patient, NOW) == 1.0  # 0.1 s of the picture and 20 ms of the decodes
    assert split([late], DECODES._replace(tpot_s=0.119), NOW) == SLICES[-1]
    assert split([late], Beside(num_prefills=1), NOW) == 1.0


def test_all_pictures_of_a_step_count_against_the_pace_of_decodes():
    late = [visual(n, num_tokens=20, due_s=S - 1.0) for n in range(3)]  # 20 ms each
    policy = Slices(COSTS)
    assert policy.split(late[:1], late[1:], DECODES, NOW) == 1.0
    assert policy.split(late, (), DECODES, NOW) == SLICES[-1]


def test_a_long_step_takes_no_small_slice_however_patient():
    """Whoever comes while it is computed would wait for its end."""
    patient = S + 1e4
    assert slowed(0.1, 0.25) > LONGEST_S > slowed(0.1, 0.5)
    assert split([visual(0, 80, due_s=patient)], DECODES, NOW) == 0.25
    assert split([visual(0, 100, due_s=patient)], DECODES, NOW) == 0.5
    assert split([visual(0, 900, due_s=patient)], DECODES, NOW) == SLICES[-1]


@given(
    drawn.visuals(),
    st.builds(Beside, st.integers(0, 9), st.integers(0, 999), st.sampled_from([0.01, 0.3]),
              st.integers(0, 2)),
)  # fmt: skip
def test_it_is_a_slice_and_more_pictures_never_make_it_smaller(pictures, beside):
    shares = [split(pictures[:count], beside, NOW) for count in range(1, len(pictures) + 1)]
    assert set(shares) <= {*SLICES, 1.0}
    below = [min(share, SLICES[-1]) for share in shares]  # late ones get that or all of it
    assert below == sorted(below)


def test_arithmetic_on_a_slice():
    assert slowed(3.0, 0.5) == pytest.approx(3.0 * 2**ETA)


def test_by_name():
    patient = [visual(0, SMALL, due_s=S + 60.0)]
    assert registry.split(EngineConfig()) is None
    chosen = registry.split(EngineConfig(split="sis"), COSTS)
    assert chosen(patient, (), DECODES, NOW) == 0.25
