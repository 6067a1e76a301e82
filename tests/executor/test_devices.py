"""Ranks with memory of their own: the same tokens, and one view of what all of them wrote. On a CPU
gloo joins them; between GPUs it is NCCL."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from tests.executor.driver import Driver, executors, expected, scene
from tests.executor.test_parallel import (
    IMAGE,
    ORDERS,
    PROGRAM,
    SOON_S,
    assert_tokens_of_chunks_and_hits,
    assert_tokens_of_many,
    begun,
    gone,
    is_gone,
)
from tests.patience import PATIENCE_S
from triptych.core.errors import ConfigError, InstanceLost, Unavailable
from triptych.core.lifecycle import Stage
from triptych.core.plan import LanguagePlan
from triptych.core.request import Sampling
from triptych.executor.device_ranks import DeviceRanks, Meeting, default_backend, device_of
from triptych.executor.ranks import Share
from triptych.executor.team import Team, TeamStore


@pytest.fixture(scope="module", params=[2, 4])
def both(request: pytest.FixtureRequest, folders):
    """Ranks apart, and the same ranks inside."""
    pair = [
        executors(folders["wide"], num_ranks=request.param, parallel=parallel, kv_blocks=400)
        for parallel in ("devices", "inside")
    ]
    yield pair
    for made in pair:
        made.close()


def runs(made, blocks) -> torch.Tensor:
    """(blocks, shards, layers, 2, tokens of a block, heads, head_dim) of the view."""
    memory = made.language.memory
    layout = memory.layout
    flat = torch.frombuffer(memory.view, dtype=torch.float32)
    return flat.view(memory.num_blocks, layout.num_shards, *layout.shape)[blocks]


def test_the_same_tokens_in_chunks_decodes_and_prefix_hits(both, folders):
    assert_tokens_of_chunks_and_hits(both[0], folders["wide"])


def test_many_sequences_in_one_step(both, folders):
    assert_tokens_of_many(both[0], folders["wide"])


@pytest.mark.parametrize("parallel", ["devices", "processes"])
def test_ranks_that_are_abandoned_end_and_nobody_waits_for_them(folders, parallel: str):
    """One of four has died, says whoever watches them."""
    made = executors(folders["wide"], num_ranks=4, parallel=parallel)
    driver, sequence = begun(made)
    made.abandon()
    assert gone(made.pids)
    with pytest.raises(InstanceLost, match="were ended"):
        driver.step((sequence, 1))
    made.abandon()
    made.close()


def test_staged_blocks_are_those_of_ranks_inside(both):
    one, found = scene(random.Random(4), [30, (4, 3), 41], IMAGE), []
    for made in both:
        driver = Driver(made, seed=7)
        sequence = driver.add(one, Sampling(temperature=1.0, seed=3))
        driver.generate(sequence, 32, 9)
        if made is both[0]:
            assert not runs(made, sequence.blocks).any(), "nobody has asked for it yet"
        made.language.memory.stage(sequence.blocks)
        found.append(runs(made, sequence.blocks).clone())
        assert all(found[-1].flatten(2)[:, shard].any() for shard in range(found[-1].shape[1]))
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_layers_leave_with_the_runs_of_all_ranks(both):
    made = both[0]
    driver = Driver(made)
    sequence = driver.add(scene(random.Random(9), [33], IMAGE))
    memory, seen = made.language.memory, []
    plan = LanguagePlan((sequence.segment(99),))

    def on_layers(done: int) -> None:
        def then() -> None:
            seen.append((done, runs(made, sequence.blocks)[:, :, :done].clone()))

        memory.stage(sequence.blocks, range(done - 1, done), then)

    made.language.execute(plan, on_layers)
    assert [done for done, _ in seen] == list(range(1, memory.layout.num_layers + 1))
    whole = runs(made, sequence.blocks)
    assert all(part.equal(whole[:, :, :done]) for done, part in seen)
    assert whole.flatten(2).any(dim=2).all(), "a run of every rank in every block"


def test_blocks_that_came_are_decoded_from(both, folders):
    """From ranks inside, as from another instance."""
    one = scene(random.Random(6), [9, (3, 4), 50], IMAGE)
    tokens = expected(folders["wide"], one, 9)[0]
    apart, inside = (Driver(made, seed=index) for index, made in enumerate(both))
    before = inside.add(one)
    inside.generate(before, 64, 3)
    after = apart.add(one)
    after.tokens, after.computed, after.drawn = list(before.tokens), before.computed, before.drawn
    after.blocks = [apart.free_kv.pop() for _ in before.blocks]
    runs(both[0], slice(None))[after.blocks] = runs(both[1], before.blocks)
    both[0].language.memory.absorb(after.blocks)
    assert apart.generate(after, 1, 9) == tokens


def test_every_rank_counts_its_weights(both):
    apart, inside = (made.memory_bytes for made in both)
    assert 0 < apart["weights"] - inside["weights"] < 0.02 * inside["weights"]
    assert apart["kv"] == inside["kv"]


@pytest.mark.parametrize("is_copying", [False, True])
def test_a_rank_that_dies_ends_the_team(folders, is_copying: bool):
    made = executors(folders["wide"], num_ranks=2, parallel="devices", timeout_s=SOON_S)
    driver, sequence = begun(made)
    os.kill(made.pids[0], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(InstanceLost):
        if is_copying:
            made.language.memory.stage(sequence.blocks)
        else:
            driver.step((sequence, 1))
    assert time.monotonic() - began < SOON_S + 10
    assert gone(made.pids), "whoever is left of a team is of no use"
    with pytest.raises(InstanceLost, match="were ended"):
        made.language.memory.stage(sequence.blocks)
    made.close()


def test_a_copy_that_is_late_ends_the_team(folders):
    """Its answer would be taken for that of the next one."""
    made = executors(folders["wide"], num_ranks=2, parallel="devices", timeout_s=SOON_S)
    _, sequence = begun(made)
    os.kill(made.pids[0], signal.SIGSTOP)
    while Path(f"/proc/{made.pids[0]}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)  # the signal stops its threads by and by
    with pytest.raises(InstanceLost, match="silent"):
        made.language.memory.stage(sequence.blocks)
    assert gone(made.pids)
    made.close()


def test_a_rank_that_is_silent_is_given_up(folders):
    made = executors(folders["wide"], num_ranks=2, parallel="devices", timeout_s=SOON_S)
    driver, sequence = begun(made)
    os.kill(made.pids[0], signal.SIGSTOP)
    with pytest.raises(InstanceLost):
        driver.step((sequence, 1))
    assert gone(made.pids)
    made.close()


def test_a_leader_that_is_killed_leaves_no_rank(folders):
    program = PROGRAM.replace("FOLDER", repr(str(folders["wide"]))).replace("IS_STEP", "True")
    program = program.replace('parallel="processes"', 'parallel="devices"')
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as leader:
        (pid,) = map(int, leader.stdout.readline().split())
        assert not is_gone(pid)
        leader.kill()
    assert gone([pid])


def test_close_ends_all_and_leaves_nothing(folders, no_leak):
    for _ in range(2):
        made = executors(folders["wide"], num_ranks=2, parallel="devices")
        begun(made)
        made.close()
        made.close()
        assert gone(made.pids)


def test_a_start_that_fails_is_heard_at_once(folders, monkeypatch, no_leak):
    """Not when the time to meet is over."""
    orders = msgspec.structs.replace(ORDERS, backend="gloo", timeout_s=SOON_S)
    memory = TeamStore(ORDERS.layout, 3, shard=0)
    team = Team(orders, memory, PATIENCE_S)
    with pytest.raises(ConfigError, match=r"model\.path: .*\(rank 1\)"):
        team.ready()
    team.close()
    memory.close()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match=r"rank 1 ended while|cannot be started"):
        executors(folders["wide"], num_ranks=2, parallel="devices")


def test_ranks_that_nobody_meets(tmp_path: Path):
    ranks = DeviceRanks(Share(0, 2), Meeting("gloo", "cpu", str(tmp_path / "meeting"), 0.2, 0.2))
    with pytest.raises(InstanceLost, match="cannot meet"):
        ranks.meet()
    ranks.close()


def test_where_ranks_compute():
    assert [device_of("cpu", rank) for rank in (0, 1)] == ["cpu", "cpu"]
    assert [device_of("cuda", rank) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    assert device_of("cuda:2", 3) == "cuda:5"
    assert default_backend(torch.device("cpu")) == "gloo"
    assert default_backend(torch.device("cuda", 1)) == "nccl"


def test_roles_without_language_and_one_rank_have_no_followers(folders):
    for role, ranks in ((frozenset({Stage.ENCODE}), 2), (frozenset(Stage), 1)):
        made = executors(folders["wide"], role, num_ranks=ranks, parallel="devices")
        assert made.pids == ()
        made.close()
    with pytest.raises(ConfigError, match=r"model\.parallel: the oracle"):
        executors("oracle", num_ranks=2, parallel="devices")
