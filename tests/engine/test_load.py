"""Long runs in small pools, and what planning costs."""

import random
import sys
from collections import Counter

import pytest

from tests.engine.bench import Bench
from tests.engine.scripted import make_job
from tests.engine.test_language_machine import FOREVER, LanguageMachine
from triptych.engine.outcome import Drew


@pytest.mark.parametrize("seed", range(6))
def test_long_load_in_a_small_pool(seed):
    """Two hundred jobs of every kind through a pool that holds three or four of them."""
    rng = random.Random(seed)

    class Tight(LanguageMachine):
        num_blocks = 22

    machine = Tight()
    for _ in range(200):
        while len([client for client in machine.clients.values() if client.end is None]) > 12:
            turn(machine, rng)
        pieces = rng.choices(["x", "y", "z", "w", "p3", "p1", "q5"], k=rng.randint(1, 5))
        kind = rng.choice(["decode", "decode", "prefill", "inbound"])
        budget_s = rng.choice([FOREVER] * 9 + [30.0])
        salt = rng.choice([b"", b"other"])
        machine.submit(pieces, kind, rng.randint(1, 25), rng.randint(0, 4), salt, False, budget_s)
    machine.teardown()
    ends = [client.end for client in machine.clients.values()]
    assert machine.engine.load().preemptions > 5
    assert ends.count("preempted") > 0
    assert ends.count("length") > 90


def turn(machine, rng):
    """One step, and some of what was promised."""
    for name, client in machine.clients.items():
        for index in sorted(client.items_missing):
            if rng.random() < 0.3:
                machine.bring_item(name, index)
        if machine.is_arriving(client) and rng.random() < 0.4:
            machine.bring_kv(name, part=rng.random() < 0.5)
        if client.end is None and rng.random() < 0.003:
            client.excuses["cancelled"] = True
            machine.engine.cancel(client.job.header.id)
        if client.end is not None and rng.random() < 0.3:
            machine.engine.release(client.job.header.id)
    machine.plan(0.1)
    machine.is_consistent()
    if machine.step is not None:
        machine.apply()


def test_plan_and_apply_cost_a_bounded_number_of_calls():
    """32 sequences of 500 tokens: 51 calls for a token of each. Seconds depend on the machine."""
    bench = Bench(num_blocks=2048, size=16, token_budget=512, chunk_tokens=256, max_sequences=64)
    for index in range(32):
        bench.engine.submit(make_job(f"{index}", range(index, index + 500), max_tokens=200), 0.0)
    while len({said.job for said in bench.of(Drew)}) < 32:
        bench.step()
    bench.step()
    calls: Counter[str] = Counter()

    def count(_frame, event, _arg):
        calls[event] += event == "call"

    for _ in range(64):  # four blocks of each sequence
        sys.setprofile(count)
        step = bench.engine.plan(0.0)
        sys.setprofile(None)
        assert len(step.plan.segments) == 32
        result = bench.executor.execute(step.plan)
        sys.setprofile(count)
        bench.engine.apply(step, result, 0.0)
        sys.setprofile(None)
    assert calls["call"] / 64 / 32 < 60
