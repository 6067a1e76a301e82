import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.executor.driver import EPD, Driver, executors, scene
from tests.patience import PATIENCE_S
from triptych.core.ids import BlockId, JobId
from triptych.core.lifecycle import Role, Stage
from triptych.core.plan import Drawn, LanguagePlan, Segment, VisionPlan
from triptych.executor import pace as pace_of_steps
from triptych.executor.pace import Niceness, Pace, are_cores_contended

GAP_S = 0.05
STEPS = 5


def plan(*lengths: int) -> LanguagePlan:
    return LanguagePlan(
        tuple(Segment(JobId(f"job-{n}"), 0, (1,) * n, (BlockId(0),)) for n in lengths)
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
    assert contest.left == 1000  # nobody even looked


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


def test_a_thread_becomes_nicer_once_and_alone():
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    nicer = Niceness(3)

    def there() -> int:
        nicer.here()
        nicer.here()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(there).result() == min(19, ours + 3)
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours


def test_pictures_yield_to_the_language_model_where_both_compute(folders):
    def niceness_of(role: Role) -> int:
        made = executors(folders["wide"], role)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(made.vision.execute, VisionPlan(())).result()
            there = thread.submit(threading.get_native_id).result()
            found = os.getpriority(os.PRIO_PROCESS, there)
        made.close()
        return found - os.getpriority(os.PRIO_PROCESS, 0)

    assert niceness_of(EPD) > 0
    assert niceness_of(frozenset({Stage.ENCODE})) == 0


BUSY = """
import os, sys, time
from triptych.executor.pace import are_cores_contended
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
parent = os.getpid()
for _ in range(2):
    if not os.fork():
        while os.getppid() == parent:
            pass
        os._exit(0)
until = time.monotonic() + float(sys.argv[1])
while not are_cores_contended() and time.monotonic() < until:
    time.sleep(0.001)
print(are_cores_contended())
"""


def test_more_threads_than_cores_are_seen():
    words = [sys.executable, "-c", BUSY, str(PATIENCE_S / 2)]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert told.stdout == "True\n"


def test_where_the_system_does_not_tell_nobody_waits(monkeypatch, tmp_path):
    monkeypatch.setattr(pace_of_steps, "_LOAD", tmp_path / "no such file")
    assert not are_cores_contended()
