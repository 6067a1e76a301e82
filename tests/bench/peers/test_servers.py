"""What is known of contestants before they start: settings, command lines, versions; and clients
of one who serves one request after the other."""

import sys
from functools import partial
from pathlib import Path

import pytest

from bench.client import Outcome
from bench.peers import servers, vllm
from bench.peers.contestant import foreign, versions
from bench.systems import SystemFailed

PLACE = vllm.Place(sys.executable, Path("runs/small"), 16)


def test_a_request_of_a_client_comes_when_its_last_was_answered():
    ends = [1.0, 2.0, 3.0, 4.0, 5.0]
    one_after_the_other = [Outcome(0.0, (end - 0.5, end), end, "ok") for end in ends]
    seen = servers.closed(one_after_the_other, 2)
    assert [one.arrival_s for one in seen] == [0.0, 0.0, 1.0, 2.0, 3.0]
    assert [one.end_s for one in seen] == ends
    assert [one.arrival_s for one in servers.closed(one_after_the_other, 1)] == [0.0, *ends[:-1]]


async def test_versions_are_asked_of_the_interpreter():
    found = await versions(sys.executable, "msgspec", "no-such-distribution")
    assert found.keys() == {"msgspec"}
    with pytest.raises(SystemFailed, match=r"interpreter: no/such/python"):
        await versions("no/such/python", "msgspec")


async def test_without_what_serving_needs_the_model_is_asked_in_process():
    entrant = await servers.transformers(Path("runs/small"), "")
    has_all = (
        set(servers.NEEDED_TO_SERVE)
        <= (await versions(sys.executable, *servers.NEEDED_TO_SERVE)).keys()
    )
    assert entrant.name == ("Transformers" if has_all else "Transformers, in process")
    assert entrant.versions["transformers"]


def test_another_interpreter_does_not_see_our_packages(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "here")
    monkeypatch.setenv("SOMETHING", "else")
    assert "PYTHONPATH" not in foreign()
    assert foreign()["SOMETHING"] == "else"


@pytest.mark.parametrize("is_eager", [True, False])
def test_the_settings_of_vllm_are_in_its_command(is_eager):
    setting = vllm.Setting(is_eager, 2)
    told = vllm.Monolithic(PLACE, setting).told
    assert ("--enforce-eager" in told["command"]) is is_eager
    assert told["environment"]["OMP_NUM_THREADS"] == "2"
    assert setting.name == ("eager, 2 threads" if is_eager else "compiled, 2 threads")
    assert "--stream-interval 1" in " ".join(told["command"])
    gathered = setting._replace(interval=8)
    assert gathered.name == setting.name + ", 8 tokens a message"
    assert "--stream-interval 8" in " ".join(vllm.Monolithic(PLACE, gathered).told["command"])
    assert f"--max-num-seqs {PLACE.max_seqs} " in " ".join(told["command"])
    few = setting._replace(at_once=9)
    assert few.name == setting.name + ", 9 at once"
    assert "--max-num-seqs 9 " in " ".join(vllm.Monolithic(PLACE, few).told["command"])


@pytest.mark.parametrize("topology", ["EPD1", "E1,P1,D1"])
def test_a_topology_is_tried_with_what_may_be_its_best(topology):
    entrant = servers.triptych(Path("runs/small"), topology, ())
    told = {name: make().told["set"] for name, make in entrant.settings.items()}
    assert told["1 thread"] == ("cluster.backend=process",)
    assert "model.threads=2" in told["2 threads, 8 tokens a message"]
    assert "engine.stream_interval=8" in told["2 threads, 8 tokens a message"]
    last = "decode yields" if "D1" in topology.split(",") else "9 at once"
    assert list(told)[-1] == f"2 threads, 8 tokens a message, {last}"
    assert told.popitem()[1][-1] in (servers.GAP, "engine.max_sequences=9")
    (name,) = servers.triptych(Path("runs/small"), topology, ["model.threads=2"]).settings
    assert name == "as given"


async def test_an_encoder_apart_shares_a_folder_that_goes_with_it():
    apart = vllm.EncoderApart(PLACE, vllm.Setting(True, 1))
    commands = {role: " ".join(apart.told[role]["command"]) for role in ("E", "PD")}
    assert '"ec_role": "ec_producer"' in commands["E"]
    assert '"ec_role": "ec_consumer"' in commands["PD"]
    folder = commands["PD"].partition('"shared_storage_path": "')[2].partition('"')[0]
    assert Path(folder).is_dir()
    assert folder in commands["E"]
    await apart.stop()
    assert not Path(folder).exists()


@pytest.mark.parametrize("make", [
    partial(vllm.Monolithic, PLACE, vllm.Setting(True, 1)),
    partial(servers.TransformersServe, Path("runs/small"), sys.executable, 1),
])  # fmt: skip
async def test_one_that_cannot_start_says_so_and_leaves_nothing(make, no_leak):
    contestant = make()
    with pytest.raises(SystemFailed, match="ended while starting"):
        await contestant.start()
    await contestant.stop()
    with pytest.raises(SystemFailed, match="not started"):
        await contestant.ask((), 1.0)
