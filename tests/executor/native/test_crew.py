"""Threads that help with large operations: the same bits, and nobody helps without an idle core."""

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.executor.attention.test_sparse import chosen
from tests.executor.memory import Memory, spans_of
from triptych.executor.models.vision_plan import Run
from triptych.executor.native import library
from triptych.executor.native_operations import Native

MANY = 1000
"""Cores: there are always idle ones, whatever else runs on the machine."""
ROOT = Path(__file__).parents[3]


@pytest.fixture
def crew():
    """The library as if the machine were large."""
    made = library.load()
    made.set_cores(MANY)
    yield made
    made.set_cores(0)


def numbers(*shape, seed=0):
    torch.manual_seed(seed)
    return torch.randn(shape)


@pytest.mark.parametrize(
    ("rows", "inner", "width"), [(104, 256, 1376), (1, 2048, 1500), (2, 1100, 1000), (3, 999, 701)]
)
def test_products_are_the_same_bits_whoever_computes(crew, rows, inner, width):
    weight, bias, x = numbers(width, inner, seed=1), numbers(width, seed=2), numbers(rows, inner)
    alone, helped = (Native(crew, threads).matrix(weight, bias) for threads in (1, 4))
    assert_helped(crew, lambda: helped(x), alone(x))


def assert_helped(crew, compute, wanted) -> None:
    """``compute`` gives what is wanted until somebody has helped, and then too."""
    before = crew.num_helped
    for _ in range(10_000):
        assert compute().equal(wanted)
        if crew.num_helped > before:
            return
    pytest.fail("nobody helped")


@pytest.mark.parametrize(
    "sizes", [[(0, 300)], [(69, 70), (3, 4), (50, 91), (200, 330), (0, 33)]], ids=["one", "many"]
)
def test_attention_is_the_same_bits_whoever_computes(crew, sizes):
    spans = spans_of(*sizes)
    memory = Memory(spans, size=128)
    wanted, _, _ = memory.attend(Native(crew), spans)
    assert_helped(crew, lambda: memory.attend(Native(crew, 4), spans)[0], wanted)


def test_attention_to_tiles_is_the_same_bits_whoever_computes(crew):
    (long,) = spans_of((0, 600))
    spans = [chosen(long, 10, 590, 16)]
    memory = Memory(spans, size=128)
    wanted, _, _ = memory.attend(Native(crew), spans)
    assert_helped(crew, lambda: memory.attend(Native(crew, 4), spans)[0], wanted)


def test_attention_of_pictures_is_the_same_bits_whoever_computes(crew):
    qkv, angles = numbers(300, 3, 3, 64), numbers(300, 32, seed=1)
    rotary, runs = (angles.cos(), angles.sin()), [Run(0, 2, 50), Run(100, 1, 200)]
    plan = Native(crew).plan_spans(runs, torch.device("cpu"))
    wanted = Native(crew).attend_spans(qkv, rotary, plan)
    assert_helped(crew, lambda: Native(crew, 4).attend_spans(qkv, rotary, plan), wanted)


def test_a_small_operation_is_computed_alone(crew):
    matrix, before = Native(crew, 4).matrix(numbers(100, 100), None), crew.num_helped
    spans = spans_of((0, 20), (3, 40))
    memory = Memory(spans)
    for _ in range(200):
        matrix(numbers(8, 100))
        memory.attend(Native(crew, 4), spans)
    assert crew.num_helped == before


def test_nobody_helps_where_no_core_is_idle(crew):
    crew.set_cores(1)
    matrix, x = Native(crew, 4).matrix(numbers(1376, 256), None), numbers(104, 256)
    matrix(x)
    time.sleep(0.01)  # who still waited awake sleeps now
    before = crew.num_helped
    for _ in range(200):
        matrix(x)
    assert crew.num_helped == before


def test_steps_of_several_threads_at_once(crew):
    """As where an instance encodes and decodes: one of them is helped, the other works alone."""
    weight, x, before = numbers(1376, 256), numbers(104, 256), crew.num_helped
    wanted, wrong = Native(crew).matrix(weight, None)(x), []

    def compute() -> None:
        matrix = Native(crew, 3).matrix(weight, None)
        for turn in itertools.count():
            if not matrix(x).equal(wanted):
                wrong.append(turn)
            if turn > 300 and (crew.num_helped > before or turn > 10_000):
                return

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert crew.num_helped > before


HELPED_AND_OVER = """
import torch
from triptych.executor.native import library
from triptych.executor.native_operations import Native
made = library.load()
made.set_cores(1000)
matrix, x = Native(made, 8).matrix(torch.ones(1376, 256), None), torch.ones(104, 256)
while not made.num_helped:
    matrix(x)
print("over")
"""


def said_by(code):
    words = (sys.executable, "-c", code)
    return subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60, check=True).stdout


def test_a_process_ends_with_its_helpers():
    assert said_by(HELPED_AND_OVER) == b"over\n"


NICER = """
import os, threading
from pathlib import Path
import torch
from triptych.executor.native import library
from triptych.executor.native_operations import Native
before = set(os.listdir("/proc/self/task"))
native = Native(library.load(), 2)
helpers = set(os.listdir("/proc/self/task")) - before
def product():
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
    native.matrix(torch.rand(512, 512), None)(torch.rand(64, 512))
thread = threading.Thread(target=product)
thread.start()
thread.join()
ours = os.getpriority(os.PRIO_PROCESS, 0)
print(len(helpers), all(os.getpriority(os.PRIO_PROCESS, int(one)) == ours for one in helpers))
"""


def test_helpers_are_as_nice_as_who_loads_the_model():
    """Not as the thread that first wants one, which may be the one that yields."""
    assert said_by(NICER) == b"1 True\n"
