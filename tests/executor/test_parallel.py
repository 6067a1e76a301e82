"""Ranks in processes compute what ranks inside one do, to the bit; and none is left alone."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.executor.driver import Driver, executors, expected, scene
from tests.patience import PATIENCE_S
from triptych.core.config import Config
from triptych.core.errors import ConfigError, InstanceLost, Unavailable
from triptych.core.lifecycle import Stage
from triptych.core.plan import LanguagePlan
from triptych.core.request import Sampling
from triptych.executor.block_store import BlockStore
from triptych.executor.build import _team
from triptych.executor.models.oracle import kv_layout
from triptych.executor.orders import Orders
from triptych.executor.ranks import ProcessRanks, Ranks, Share, make_board
from triptych.executor.team import Team, _mesh

IMAGE = 690
TEAMS = [("demo", 2), ("wide", 2), ("wide", 4)]
SOON_S = 2.0
"""Silence after which a rank is given up, where a test is of that."""


ORDERS = Orders(
    path="/nowhere",
    dtype="float32",
    kernels="plain",
    rank=1,
    threads=1,
    layout=kv_layout(block_size=4, model="x", num_shards=2),
    num_blocks=3,
    store=-1,
    board=-1,
    peers=(),
    timeout_s=PATIENCE_S,
)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def gone(pids) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not all(map(is_gone, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return all(map(is_gone, pids))


@pytest.fixture(scope="module", params=TEAMS, ids=lambda team: f"{team[0]}-{team[1]}")
def team(request: pytest.FixtureRequest, folders):
    """A kind of checkpoint, its ranks in processes, and the same ranks inside."""
    kind, num_ranks = request.param
    made = executors(folders[kind], num_ranks=num_ranks, parallel="processes", kv_blocks=400)
    inside = executors(folders[kind], num_ranks=num_ranks, kv_blocks=400)
    yield kind, made, inside
    made.close()
    inside.close()


@pytest.fixture
def pair(folders):
    """Two ranks of the wide checkpoint that wait for each other for a short time only."""
    made = executors(folders["wide"], num_ranks=2, parallel="processes", timeout_s=SOON_S)
    yield made
    made.close()
    assert gone(made.pids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_sums_are_those_of_ranks_inside_to_the_bit(num_ranks: int, dtype: torch.dtype):
    torch.manual_seed(num_ranks)
    shapes = [(1, 1), (1, 7), (17, 3), (257, 259)]
    summands = [[torch.randn(shape).to(dtype) for _ in range(num_ranks)] for shape in shapes]
    wanted = [Ranks(num_ranks).total(own) for own in summands]
    board, ends = make_board(num_ranks), _mesh(num_ranks)

    def rank(index: int) -> list[torch.Tensor]:
        with torch.inference_mode():
            ranks = ProcessRanks(Share(index, num_ranks), board, ends[index], PATIENCE_S)
            found = [ranks.total([own[index].clone()]) for own in summands]
            word = torch.full((299, 301), float(index), dtype=dtype)
            ranks.spread(word)
            ranks.close()
            return [*found, word]

    with ThreadPoolExecutor(num_ranks) as pool:
        everywhere = list(pool.map(rank, range(num_ranks)))
    os.close(board)
    for *found, word in everywhere:
        assert all(map(torch.equal, found, wanted))
        assert not word.any(), "what rank 0 said"


def test_nobody_sums_up_alone():
    board, ends = make_board(3), _mesh(3)
    ranks = ProcessRanks(Share(0, 3), board, ends[0], 0.05)
    with pytest.raises(InstanceLost, match="silent"):
        ranks.total([torch.ones(1)])
    for end in (*ends[1], *ends[2]):
        end.close()
    with pytest.raises(InstanceLost, match="gone"):
        ranks.total([torch.ones(1)])
    ranks.close()
    os.close(board)


def test_tokens_of_prefill_chunks_decode_and_prefix_hits(team, folders):
    kind, made, _ = team
    assert_tokens_of_chunks_and_hits(made, folders[kind])


def assert_tokens_of_chunks_and_hits(made, folder: Path) -> None:
    one = scene(random.Random("five"), [1, (2, 2), 30, (5, 4), 1, (1, 1), 2, (3, 8), 9], IMAGE)
    tokens = expected(folder, one, 10)[0]
    driver = Driver(made)
    first = driver.add(one)
    for chunk in (10**6, 16, 7):
        sequence = first if chunk == 16 else driver.add(one)
        assert driver.generate(sequence, chunk, 10) == tokens
    again = driver.add(one)
    again.blocks, again.computed = first.blocks[:3], 48
    assert driver.generate(again, 20, 10) == tokens
    assert again.blocks[3] != first.blocks[3]


def test_many_sequences_in_one_step(team, folders):
    kind, made, _ = team
    assert_tokens_of_many(made, folders[kind])


def assert_tokens_of_many(made, folder: Path) -> None:
    rng = random.Random(5)
    cuts = [[3], [40, (2, 3), 90], [1, (3, 3), 4], [170], [17, (1, 4), 2, (5, 2), 1]]
    scenes = [scene(rng, pieces, IMAGE) for pieces in cuts]
    driver = Driver(made)
    sequences = [driver.add(one) for one in scenes]
    while work := [each for each in sequences if len(each.drawn) < 8]:
        driver.step(*((each, 1 if each.drawn else rng.choice([1, 5, 33])) for each in work))
    for one, sequence in zip(scenes, sequences, strict=True):
        assert [drawn.token for drawn in sequence.drawn] == expected(folder, one, 8)[0]


def test_kv_and_draws_are_those_of_ranks_inside_to_the_bit(team):
    _, made, inside = team
    one = scene(random.Random(4), [30, (4, 3), 41], IMAGE)
    sampling = Sampling(temperature=1.0, seed=3, logprobs=2, repetition_penalty=1.1)
    found = []
    for each in (made, inside):
        driver = Driver(each, seed=7)
        sequence = driver.add(one, sampling)
        driver.generate(sequence, 32, 9)
        found.append((driver.kv(sequence).clone(), sequence.drawn))
    assert found[0][0].equal(found[1][0])
    assert found[0][1] == found[1][1]


def test_the_instance_counts_all_weights_and_one_store(team):
    _, made, inside = team
    norms = made.memory_bytes["weights"] - inside.memory_bytes["weights"]
    assert 0 < norms < 0.02 * inside.memory_bytes["weights"], "only norms are everywhere"
    assert made.memory_bytes["kv"] == inside.memory_bytes["kv"]
    assert made.language.memory.layout == inside.language.memory.layout
    assert inside.pids == ()
    assert len(made.pids) == made.language.memory.layout.num_shards - 1


def test_layers_that_are_told_are_written_by_all_ranks(team):
    """Through ``view``, where transfers read."""
    _, made, _ = team
    driver = Driver(made)
    sequence = driver.add(scene(random.Random(9), [33], IMAGE))
    layout = made.language.memory.layout
    seen = []

    def runs() -> torch.Tensor:
        memory = made.language.memory
        flat = torch.frombuffer(memory.view, dtype=torch.float32)
        return flat.view(memory.num_blocks, layout.num_shards, *layout.shape)[sequence.blocks]

    plan = LanguagePlan((sequence.segment(99),))
    made.language.execute(plan, lambda done: seen.append(runs()[:, :, :done].clone()))
    assert [len(part[0, 0]) for part in seen] == list(range(1, layout.num_layers + 1))
    whole = runs()
    assert all(part.equal(whole[:, :, : part.shape[2]]) for part in seen)
    assert whole.flatten(2).any(dim=2).all(), "a run of every rank in every block"


def test_bfloat16_ranks_give_the_bits_of_ranks_inside(folders):
    one = scene(random.Random(2), [6, (3, 5), 30], IMAGE)
    kept = []
    for parallel in ("processes", "inside"):
        made = executors(folders["wide"], dtype="bfloat16", num_ranks=2, parallel=parallel)
        driver = Driver(made)
        sequence = driver.add(one)
        kept.append((driver.generate(sequence, 20, 8), driver.kv(sequence).clone()))
        made.close()
    assert kept[0][0] == kept[1][0]
    assert kept[0][1].equal(kept[1][1])


def begun(made):
    """A driver and its sequence, prefilled."""
    driver = Driver(made)
    sequence = driver.add(scene(random.Random(1), [30], IMAGE))
    driver.step((sequence, 99))
    return driver, sequence


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_follower_that_is_lost_ends_the_team_in_bounded_time(pair, blow: signal.Signals):
    """At once if it died; after the time-out if it is silent."""
    driver, sequence = begun(pair)
    os.kill(pair.pids[0], blow)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(InstanceLost):
            driver.step((sequence, 1))
        assert time.monotonic() - began < SOON_S + 10
        assert gone(pair.pids), "nobody writes to the store any more"


def test_a_follower_that_dies_within_a_step_ends_it(pair):
    _, sequence = begun(pair)

    def kill(done: int) -> None:
        if done == 1:
            os.kill(pair.pids[0], signal.SIGKILL)

    with pytest.raises(InstanceLost, match="fell apart"):
        pair.language.execute(LanguagePlan((sequence.segment(1),)), kill)


def test_a_leader_that_fails_within_a_step_ends_the_team(pair):
    """The follower waits in the middle of a layer, where no later step would find it."""
    driver, sequence = begun(pair)

    def fail(done: int) -> None:
        raise ValueError("no room for the layer")

    with pytest.raises(InstanceLost, match="no room"):
        pair.language.execute(LanguagePlan((sequence.segment(1),)), fail)
    assert gone(pair.pids)
    with pytest.raises(InstanceLost, match="were ended"):
        driver.step((sequence, 1))


def test_close_ends_all_and_leaves_nothing(folders, no_leak):
    for _ in range(2):
        made = executors(folders["wide"], num_ranks=2, parallel="processes")
        begun(made)
        made.close()
        made.close()
        assert gone(made.pids)


PROGRAM = """
import time
from triptych.core.config import Config, ModelConfig
from triptych.core.ids import JobId
from triptych.core.lifecycle import Stage
from triptych.core.plan import LanguagePlan, Segment
from triptych.executor.build import build

model = ModelConfig(dtype="float32", device="cpu", tensor_parallel=2, parallel="processes")
made = build(FOLDER, Config(model=model), frozenset(Stage), "x")

def wait(done: int = 0) -> None:
    print(*made.pids, flush=True)
    time.sleep(1000)

if IS_STEP:
    plan = LanguagePlan((Segment(JobId("job"), 0, (1, 2, 3), (0,)),))
    made.language.execute(plan, wait)
wait()
"""


@pytest.mark.parametrize("is_step", [False, True])
def test_a_leader_that_is_killed_leaves_no_follower(folders, is_step: bool):
    """Whether they wait for a step or, in the middle of one, for the leader's summand."""
    program = PROGRAM.replace("FOLDER", repr(str(folders["wide"]))).replace("IS_STEP", str(is_step))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as leader:
        (pid,) = map(int, leader.stdout.readline().split())
        assert not is_gone(pid)
        leader.kill()
    assert gone([pid])


def test_roles_without_language_have_no_followers(folders):
    role = frozenset({Stage.ENCODE})
    made = executors(folders["wide"], role, num_ranks=2, parallel="processes")
    assert made.pids == ()
    made.close()
    made = executors(folders["wide"], num_ranks=1, parallel="processes")
    assert made.pids == ()
    made.close()


def test_what_cannot_be_shared_is_refused(folders):
    with pytest.raises(ConfigError, match=r"model\.parallel: the oracle"):
        executors("oracle", num_ranks=2, parallel="processes")
    executors("oracle", num_ranks=1, parallel="processes").close()
    memory = SimpleNamespace(fd=-1, tensor=SimpleNamespace(device="cuda:1"))
    with pytest.raises(ConfigError, match=r"model\.parallel: .* cuda:1"):
        _team(ORDERS, memory, Config())


def test_a_start_that_fails_leaves_nobody(folders, tmp_path: Path, monkeypatch, no_leak):
    folder = shutil.copytree(folders["wide"], tmp_path / "wrong")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.2.mlp.up_proj.weight"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="missing tensor"):
        executors(folder, num_ranks=2, parallel="processes")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(Unavailable, match=r"rank 1 ended while|cannot be started"):
        executors(folders["wide"], num_ranks=2, parallel="processes")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(Unavailable, match="cannot be started"):
        executors(folders["wide"], num_ranks=2, parallel="processes")


@pytest.mark.parametrize(
    ("start_s", "error", "message"),
    [
        (PATIENCE_S, ConfigError, r"model\.path: .*\(rank 1\)"),
        (0.01, Unavailable, "rank 1 is not ready after 0.01 s"),
    ],
)
def test_what_a_follower_says_of_its_start_is_heard(start_s: float, error, message: str):
    memory = BlockStore(ORDERS.layout, 3)
    made = Team(ORDERS, memory, start_s)
    with pytest.raises(error, match=message):
        made.ready()
    made.close()
    assert gone(made.pids)
    memory.close()
