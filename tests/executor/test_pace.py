import os
import random
import time
from collections.abc import Sequence

import pytest

from tests.executor.driver import EPD, Driver, executors, scene
from triptych.core.ids import BlockId, JobId
from triptych.core.lifecycle import Stage
from triptych.core.plan import Draw, Drawn, LanguagePlan, Segment
from triptych.core.request import Sampling
from triptych.executor import pace as pace_of_steps
from triptych.executor.pace import Pace, are_cores_contended

GAP_S = 0.05
STEPS = 5


def plan(*lengths: int, drawn: int = 1) -> LanguagePlan:
    """Decodes where ``drawn`` tokens are there, else prompts, the shortest of one token."""
    return LanguagePlan(
        tuple(
            Segment(
                JobId(f"job-{n}"), 0, (1,) * n, (BlockId(0),), (), Draw(Sampling(), 9 + drawn, 9)
            )
            for n in lengths
        )
    )


class Contest:
    """Somebody waits for a core the next ``looks`` times that anybody looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> bool:
        self.left -= 1
        return self.left >= 0


def test_a_step_of_decodes_begins_a_gap_after_the_last_one():
    pace = Pace(GAP_S, lambda: True)
    assert pace.wait(plan(1, 1)) == 0.0  # the first of all
    began_s = time.monotonic()
    waited_s = pace.wait(plan(1, 1, 1))
    assert time.monotonic() - began_s >= waited_s >= GAP_S * 0.9


@pytest.mark.parametrize("lengths", [(1,), (1, 7), (7, 7), ()])
def test_prompts_and_one_that_decodes_alone_never_wait(lengths):
    contest = Contest(1000)
    pace = Pace(GAP_S, contest)
    pace.wait(plan(1, 1))
    assert pace.wait(plan(*lengths)) == 0.0
    assert pace.wait(plan(1, 1, drawn=0)) == 0.0  # of a prompt whose prefix is cached
    assert contest.left == 1000  # nobody even looked


def test_who_waits_for_the_step_ends_its_wait():
    pace = Pace(60.0, lambda: True)
    pace.wait(plan(1, 1))
    over = iter([False, False, True])
    assert pace.wait(plan(1, 1), lambda: next(over)) < 10.0


@pytest.mark.parametrize("looks", [0, 3])
def test_it_begins_as_soon_as_nobody_waits_for_a_core(looks):
    contest = Contest(looks)
    pace = Pace(60.0, contest)
    pace.wait(plan(1, 1))
    assert pace.wait(plan(1, 1)) < 10.0
    assert contest.left == -1


def test_a_run_of_steps_waits_and_changes_no_token(folders, monkeypatch):
    """The wait is no part of a step's seconds, which others predict by."""

    def run(gap_s: float) -> tuple[list[list[int]], float, float]:
        driver = Driver(executors(folders["wide"], decode_gap_s=gap_s))
        language = driver.executors.language
        sequences = [driver.add(scene(random.Random(n), [n], 257)) for n in (5, 9)]
        driver.step(*((each, 99) for each in sequences))
        segments = tuple(each.segment(1, steps=STEPS) for each in sequences)
        tokens, seconds, began_s = [], [], time.monotonic()

        def told(drawn: Sequence[Drawn], step_s: float) -> None:
            tokens.append([each.token for each in drawn])
            seconds.append(step_s)

        last = language.execute(LanguagePlan(segments, STEPS), on_drawn=told)
        tokens.append([each.token for each in last.drawn])
        return tokens, sum(seconds) + last.seconds, time.monotonic() - began_s

    monkeypatch.setattr(pace_of_steps, "are_cores_contended", lambda: True)
    tokens, computed_s, wall_s = run(GAP_S)
    assert tokens == run(0.0)[0]
    assert len(tokens) == STEPS
    waited_s = GAP_S * (STEPS - 1)
    assert wall_s >= waited_s
    assert wall_s - computed_s >= waited_s / 2


def test_pictures_yield_to_the_language_model_where_both_compute(folders):
    nice = {}
    for role in (EPD, frozenset({Stage.ENCODE}), frozenset({Stage.ENCODE, Stage.DECODE})):
        made = executors(folders["wide"], role)
        nice[role] = made.vision.nice
        made.close()
    assert [value > 0 for value in nice.values()] == [True, False, True]


@pytest.mark.parametrize(("running", "is_contended"), [(1, False), (4, False), (5, True)])
def test_more_threads_than_cores_are_seen(monkeypatch, tmp_path, running, is_contended):
    told = tmp_path / "loadavg"
    told.write_text(f"0.52 0.58 0.59 {running}/2213 4711\n")
    monkeypatch.setattr(pace_of_steps, "_LOAD", told)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert are_cores_contended() is is_contended


def test_the_system_is_asked():
    assert int(pace_of_steps._LOAD.read_text().split()[3].partition("/")[0]) >= 1


def test_where_the_system_does_not_tell_nobody_waits(monkeypatch, tmp_path):
    monkeypatch.setattr(pace_of_steps, "_LOAD", tmp_path / "no such file")
    assert not are_cores_contended()
