"""The profile: what it finds again of costs that are known, and the command on a real server."""

import os
import subprocess
import sys

import msgspec
import pytest

from bench.workload import Text
from cluster.host import InstanceSpec
from cluster.machine import ThisMachine
from simulator.costs.card import Card, from_file
from simulator.costs.overheads import Handling, Overheads
from simulator.profile.around import around, crowded
from simulator.profile.grid import Limits, Plans, Shape, shapes
from simulator.profile.probes import (
    KINDS,
    NUM_CLIENTS,
    ONE_BY_ONE,
    Crowd,
    Probe,
    settings_of,
    usual,
)
from simulator.profile.processes import cpu_s
from simulator.profile.profile import TOPOLOGIES, scaled
from simulator.profile.rehearsal import rehearse, rehearse_crowd
from simulator.profile.slices import slices
from simulator.profile.speeds import _speeds
from simulator.profile.steps import RUN, Bench, Timed, _repeated
from simulator.profile.tempo import Tempo
from tests.flow.served import ROOT
from tests.simulator.test_threads import AROUND, SIZES, STEPS
from triptych.core.config import load
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage
from triptych.inputs.model_card import load_card

CONFIG = load(None, ["model.path=oracle", "cluster.topology=EPD1"], environment={})
CARD = Card(source="by hand", sizes=SIZES, costs=STEPS.fitted())
TRUE = msgspec.structs.replace(
    AROUND,
    slowdown=1.25,
    turn_token_s=0.0002,
    turn_prompt_s=0.0002,
    client=msgspec.structs.replace(AROUND.client, ended_s=0.0004),
    router=msgspec.structs.replace(AROUND.router, ended_s=0.0015),
    instance=Handling(job_s=0.0006, token_s=0.0001, ended_s=0.0002),
    transfer_byte_s=1e-8,
    picture_wait_s=0.0007,
    transfer_wait_s=0.0009,
)


def probe_of(kind, topology, true=TRUE, settings=()):
    """What a server would show whose overheads are ``true``."""
    blank = Probe(
        kind=kind, topology=topology, settings=settings,
        num_prompt=kind.num_text + 20 + sum(map(_tokens, kind.sides)),
        client_s=0, router_s=0, decoders_s=0, instances_s={}, ttft_s=0, tpot_s=0, whole_s=0,
    )  # fmt: skip
    needs = rehearse(CONFIG, CARD, blank, true)
    count = needs.counts.get
    megapixels = sum(side * side for side in kind.sides) / 1e6
    transfers = true.transfer_s * count("transfers", 0) + true.transfer_byte_s * count("bytes", 0)
    behind = {
        "client": true.client.ended_s,
        "router": true.router.ended_s,
        "instances": true.instance.ended_s * (count("jobs", 0) if "," in topology else 1),
    }
    return msgspec.structs.replace(
        blank,
        client_s=handled(true.client, count),
        router_s=handled(true.router, count),
        decoders_s=true.picture_s * len(kind.sides) + true.megapixel_s * megapixels,
        instances_s={
            "whole": true.slowdown * count("seconds", 0)
            + true.step_s * count("steps", 0)
            + true.turn_s * count("turns", 0)
            + true.turn_token_s * count("turn_tokens", 0)
            + true.turn_prompt_s * count("turn_prompts", 0)
            + true.vision_step_s * count("vision_steps", 0)
            + (true.instance.job_s + true.instance.ended_s) * count("jobs", 0)
            + true.instance.token_s * count("tokens", 0)
            + transfers
        },
        behind_s=behind if kind.at_once == kind.num_output == 1 else {},
        ttft_s=needs.ttft_s,
        tpot_s=needs.tpot_s,
        whole_s=needs.ttft_s,
    )


def probes_of(true=TRUE):
    """What all servers would show."""
    texts = [kind for kind in KINDS if not kind.sides]
    return [
        *(probe_of(kind, topology, true) for topology in TOPOLOGIES for kind in KINDS),
        *(probe_of(kind, TOPOLOGIES[0], true, ONE_BY_ONE) for kind in texts),
    ]


def _tokens(side):
    return (side // 28) ** 2


def handled(costs, count):
    return (
        (costs.request_s + costs.ended_s) * count("requests", 0)
        + costs.picture_s * count("pictures", 0)
        + costs.text_s * count("text", 0)
        + costs.job_s * count("jobs", 0)
        + costs.batch_s * count("batches", 0)
        + costs.token_s * count("tokens", 0)
    )


def test_what_surrounds_the_steps_is_found_again():
    probes = probes_of()
    found, errors = around(CONFIG, CARD, probes, Overheads(speeds=TRUE.speeds))
    assert errors["client"].max < 0.01
    assert errors["router"].max < 0.02
    # How eight answers at once share steps is known only as well as everything else is.
    assert errors["instances"].mean < 0.05
    # Rehearsals with what was found take as long as the server took.
    assert errors["ttft"].max < 0.1
    assert errors["ttft"].mean < 0.02
    assert errors["tpot"].max < 0.02
    assert found.router.picture_s == pytest.approx(TRUE.router.picture_s, rel=0.1)
    assert found.router.request_s == pytest.approx(TRUE.router.request_s, rel=0.3)
    assert found.router.ended_s == pytest.approx(TRUE.router.ended_s)
    assert found.client.ended_s == pytest.approx(TRUE.client.ended_s)
    assert found.instance.ended_s == pytest.approx(TRUE.instance.ended_s)
    assert found.picture_s == pytest.approx(TRUE.picture_s, rel=0.01)
    assert found.megapixel_s == pytest.approx(TRUE.megapixel_s, rel=0.01)
    # Steps of ten milliseconds each: what is a step's and what is the turn's behind it is one sum.
    turn_s, true_s = (
        one.slowdown * STEPS.step_s + one.turn_s + one.turn_token_s for one in (found, TRUE)
    )
    assert turn_s == pytest.approx(true_s, rel=0.05)
    assert found.turn_prompt_s > 0
    assert found.speeds == TRUE.speeds
    assert found.encodes_alone, "the profile is of a CPU"


@pytest.mark.parametrize(("threads", "least"), [(1, 1.0), (2, 0.0)])
def test_a_step_is_at_least_its_own_work_unless_it_is_a_devices(threads, least):
    """A server whose processes worked less than the steps lasted: not on one thread."""
    config = load(None, ["model.path=oracle", f"model.threads={threads}"], environment={})
    true = msgspec.structs.replace(TRUE, slowdown=0.3)
    found, _ = around(config, CARD, probes_of(true), Overheads(speeds=TRUE.speeds))
    assert found.slowdown >= least
    assert (found.slowdown == 1.0) is (least == 1.0)


def crowd_of(topology, **more):
    kinds = tuple(kind for kind in KINDS if kind.at_once == 1) * 2
    blank = Crowd(topology=topology, kinds=kinds, worked_s=0.0, ttft_s=0.0, tpot_s=0.0)
    return msgspec.structs.replace(blank, **more)


def test_a_crowd_asks_one_thing_after_the_other():
    crowd = crowd_of("EPD1")
    some = crowd.arrivals(100)
    assert len(some) == len(crowd.kinds) == 12
    assert len({part.seed for one in some for part in one.parts if isinstance(part, Text)}) == 12
    for client in range(NUM_CLIENTS):
        first, *later = [one for one in some if one.session == f"client-{client}"]
        assert first.after_s is None
        assert {one.after_s for one in later} == {0.0}


def test_a_crowd_that_is_the_rehearsal_is_met_and_another_is_not():
    probes = [probe_of(kind, "EPD1") for kind in KINDS]
    lengths = {probe.kind.name: probe.num_prompt for probe in probes}
    crowds = []
    for topology in TOPOLOGIES:
        took = rehearse_crowd(CONFIG, CARD, crowd_of(topology), lengths, TRUE)
        figures = {"worked_s": took.work_s, "ttft_s": took.ttft_s, "tpot_s": took.tpot_s}
        crowds.append(crowd_of(topology, **figures))
    errors = crowded(CONFIG, CARD, (probes, crowds), TRUE)
    assert set(errors) == {"crowd work", "crowd ttft", "crowd tpot"}
    assert [each.max for each in errors.values()] == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
    slow = [msgspec.structs.replace(crowd, ttft_s=2 * crowd.ttft_s) for crowd in crowds]
    assert crowded(CONFIG, CARD, (probes, slow), TRUE)["crowd ttft"].bias == pytest.approx(-0.5)


@pytest.mark.parametrize("turn_wait_s", [0.0008, 0.0012, 0.003])
def test_a_wait_is_found_though_most_of_it_passes_beside_other_work(turn_wait_s):
    true = msgspec.structs.replace(TRUE, turn_wait_s=turn_wait_s, hop_s=0.0004)
    probes = probes_of(true)
    _, errors = around(CONFIG, CARD, probes, Overheads(speeds=true.speeds))
    assert errors["tpot"].max < 0.02
    assert errors["ttft"].mean < 0.03


def test_paces_are_met_of_one_and_of_several_whether_steps_are_told_or_turned():
    """The fixture's steps all last as long, so what is a step's and what passes beside it is one
    sum; that each sum is right shows in the paces."""
    true = msgspec.structs.replace(TRUE, step_wait_s=0.002, step_token_wait_s=0.0005)
    probes = probes_of(true)
    found, _ = around(CONFIG, CARD, probes, Overheads(speeds=true.speeds))
    paced = [each for each in probes if each.kind.num_output > 1 and each.topology == "EPD1"]
    assert {(each.kind.at_once, each.settings) for each in paced} == {
        (1, ()), (8, ()), (1, ONE_BY_ONE), (8, ONE_BY_ONE),
    }  # fmt: skip
    for probe in paced:
        again = rehearse(CONFIG, CARD, probe, found)
        assert again.tpot_s == pytest.approx(probe.tpot_s, rel=0.03)


def test_a_server_that_is_sooner_than_its_rehearsal_waits_for_nothing():
    probes = probes_of()
    soon = [msgspec.structs.replace(probe, ttft_s=probe.ttft_s / 3) for probe in probes]
    found, _ = around(CONFIG, CARD, soon, Overheads(speeds=TRUE.speeds))
    assert found.hop_s == found.picture_wait_s == found.transfer_wait_s == 0.0


def test_all_seconds_of_what_was_measured_are_scaled():
    (kind,) = (each for each in KINDS if each.name == "answer")
    probe = probe_of(kind, "EPD1")
    half = scaled(probe, 0.5)
    assert half.router_s == probe.router_s / 2
    assert half.instances_s == {"whole": probe.instances_s["whole"] / 2}
    assert half.tpot_s == probe.tpot_s / 2
    assert (half.kind, half.num_prompt) == (kind, probe.num_prompt)
    timed = Timed(shape=Shape(contexts=(10,)), seconds=(0.5, 1.0))
    assert scaled(timed, 2.0) == Timed(timed.shape, (1.0, 2.0))


def test_the_longest_twentieth_is_no_ones():
    assert usual([1.0] * 38 + [50.0, 60.0]) == 1.0
    assert usual([1.0, 3.0]) == 2.0


def test_cores_are_compared_in_rounds():
    def round_of(*slower):
        return [(0.010 * step, 0.0003 * beat) for step, beat in ((1, 1), *slower)]

    rounds = [round_of((1, 1.5), (1, 2)), round_of((3, 9), (1, 2)), round_of((1, 1.5), (1, 2))]
    assert _speeds(rounds, 3) == pytest.approx((1.0, 1.6, 2.0)), "half and half, one time is none"
    assert _speeds([round_of((0.5, 0.5))], 4) == (1.0, 2.0, 3.0, 4.0), "no more than a core each"
    assert _speeds([round_of((5, 5))], 2) == (1.0, 1.0)


def test_a_process_is_heard_of_while_it_works_and_behind_its_threads():
    script = (
        "import sys, threading, time\n"
        "def work():\n"
        "    end = time.thread_time() + 0.2\n"
        "    while time.thread_time() < end: pass\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "print('done', flush=True); sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        worked_s = cpu_s(child.pid)
        assert 0.2 <= worked_s < 2.0
        child.stdin.close()
        child.wait()
    assert cpu_s(child.pid) == 0.0
    assert cpu_s(0) == 0.0, "nobody, and not this process"


def test_pictures_have_steps_of_their_own_where_the_server_gives_them_some():
    (kind,) = (each for each in KINDS if len(each.sides) == 4)
    blank = Probe(
        kind=kind, topology="EPD1", num_prompt=1020, client_s=0, router_s=0, decoders_s=0,
        instances_s={}, ttft_s=0, tpot_s=0, whole_s=0,
    )  # fmt: skip
    quick = {"picture_s": 0.0, "megapixel_s": 0.0, "picture_wait_s": 0.0}  # they come together

    def steps(*, encodes_alone):
        around = msgspec.structs.replace(TRUE, encodes_alone=encodes_alone, **quick)
        return rehearse(CONFIG, CARD, blank, around).counts["vision_steps"]

    assert steps(encodes_alone=True) == 4
    assert steps(encodes_alone=False) < 4


def test_nothing_around_is_found_where_there_is_nothing():
    probes = [
        msgspec.structs.replace(probe_of(kind, "EPD1"), client_s=0.0, router_s=0.0)
        for kind in KINDS
    ]
    found, _ = around(CONFIG, CARD, probes, Overheads())
    assert found.client == Handling()
    assert found.router == Handling()
    assert found.transfer_wait_s == 0.0


@pytest.mark.parametrize("path", ["oracle", "examples/demo_model"])
def test_every_step_of_the_grid_is_one_that_an_engine_could_make(path):
    config = load(None, [f"model.path={path}"], environment={})
    card = load_card(path)
    limits, plans = Limits.of(config, card), Plans(config, card)
    some = shapes(limits, 4)
    assert len(some) == len(set(some)) > 40
    for shape in some:
        if shape.pictures:
            plan = plans.vision(shape, shape.pictures)
            for task in plan.tasks:
                _, rows, columns = task.item.grid
                assert rows * columns // card.image.merge_size**2 == task.item.num_tokens
            assert sum(shape.pictures) <= max(limits.image_budget, max(shape.pictures))
            continue
        segments = plans.language(shape).segments
        assert sum(len(each.tokens) for each in segments) <= config.engine.token_budget
        assert len(segments) <= config.engine.max_sequences
        for segment in segments:
            assert segment.end <= card.max_positions
            assert len(segment.blocks) * config.cache.block_size >= segment.end


def test_servers_that_are_asked_are_like_the_configuration():
    config = load(None, ["engine.chunk_tokens=64", "cache.prefix=false"], environment={})
    again = load(None, settings_of(config), environment={})
    for section in ("model", "engine", "cache", "transfer", "limits"):
        assert getattr(again, section) == getattr(config, section)


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "cli", "profile", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
        timeout=280, check=False,
    )  # fmt: skip


def test_the_command_writes_a_card_of_steps(tmp_path):
    out = tmp_path / "steps.json"
    done = run("--model", "oracle", "--quick", "--steps-only", "--out", str(out), "--date", "today")
    assert done.returncode == 0, done.stderr
    card = from_file(out)
    assert card.overheads is None
    assert {"encode", "prefill", "decode"} <= set(card.errors)
    assert "model oracle, today" in card.source
    assert card.costs.language_s([(0, 64)], 0, 0) > 0
    assert "decode" in done.stdout


@pytest.mark.slow
def test_the_command_asks_a_server(tmp_path):
    out = tmp_path / "card.json"
    done = run("--model", "oracle", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    around = from_file(out).overheads
    assert isinstance(around, Overheads)
    assert around.router.request_s + around.router.job_s > 0
    assert around.picture_s + around.megapixel_s > 0
    assert len(around.speeds) == len(os.sched_getaffinity(0))
    assert around.router.ended_s > 0
    assert around.beat_s > 0
    assert (around.slice_s, around.tick_s) == slices()
    assert around.turn_s + around.turn_wait_s > 0
    assert around.turn_prompt_s > 0
    assert from_file(out).errors["crowd work"].num_points == len(TOPOLOGIES)


def test_a_rehearsal_counts_what_is_computed_and_nothing_that_is_only_predicted():
    (kind,) = (each for each in KINDS if each.name == "answer")
    config = load(None, ["model.path=oracle", "engine.order=slack"], environment={})
    for topology in TOPOLOGIES:
        counts = rehearse(config, CARD, probe_of(kind, topology), TRUE).counts
        assert counts["steps"] + counts["turns"] == 65
        assert counts["seconds"] == pytest.approx(65 * STEPS.step_s)
        assert counts["tokens"] == 65
        assert counts["requests"] == 1


def test_steps_are_told_at_the_usual_tempo():
    """On a machine that is half as fast meanwhile."""

    class Steps:
        def run(self, shape):
            return 0.030 * slower[0]

    slower = [1.0]

    def a_beat():
        return 0.001 * slower[0]

    tempo = Tempo(0.001, a_beat)
    slower[0] = 2.0
    (timed,) = _repeated(Steps(), tempo, [Shape(contexts=(40,))], 3, lambda text, share: None)
    assert timed.seconds == pytest.approx((0.030, 0.030, 0.030))


async def test_a_decode_is_timed_in_a_run_and_a_prompt_alone(monkeypatch):
    """The clock stands still but for the steps that are told, a tick each, and the last."""
    machine, card = ThisMachine(), load_card("oracle")
    spec = InstanceSpec(InstanceId("profile-0@1"), tuple(Stage), CONFIG, b"")
    executors = await machine.executors(spec, card)
    now, language = [0.0], executors.language
    execute = language.execute

    def ticking(plan, on_layers, on_drawn):
        def told(drawn, seconds):
            now[0] += 1.0
            on_drawn(drawn, seconds)

        result = execute(plan, on_layers, on_drawn and told)
        now[0] += 1.0
        return result

    monkeypatch.setattr(language, "execute", ticking)
    bench = Bench(CONFIG, card, executors)
    bench._clock = lambda: now[0]
    try:
        assert bench.run(Shape(contexts=(40, 40))) == 1.0
        assert now[0] == RUN
        assert bench.run(Shape(chunks=((0, 16),))) == 1.0
        assert bench.run(Shape(chunks=((0, 16),), contexts=(40,))) == 1.0
        assert now[0] == RUN + 2
    finally:
        executors.close()
