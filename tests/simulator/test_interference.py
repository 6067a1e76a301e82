"""Places that share GPUs: what it costs them, and that their GPUs count once."""

import itertools
from statistics import median

import msgspec
import pytest

from scheduler.slices import BANDWIDTH
from simulator.interference import Colocated, Interference, present
from tests.simulator.test_happenings import run_of, tpots
from triptych.core.errors import ConfigError
from triptych.core.plan import ETA

PLACES = ("encode-0", "decode-0")


def encoding_s(run):
    return sum(one.end_s - one.start_s for one in run.busy if one.what == "encode")


def gaps(rows):
    """Between tokens behind the second, of all answers."""
    times = [row.token_times_s[1:] for row in rows]
    return [later - sooner for each in times for sooner, later in itertools.pairwise(each)]


def factors(group, *busy):
    """Of each place's own work while the others do ``busy``."""
    world = Interference([group], share=0.0)
    for place, what in busy:
        world.begin(place, what)
    found = {}
    for place in group.places:
        what = place.partition("-")[0]
        found[place] = world.begin(place, what)
        world.end(place, what)
    return found


def test_shares_slow_compute_always_and_decode_while_others_compute():
    group = Colocated(PLACES, shares=(0.25, 0.75), eta=0.8, bandwidth=0.1)
    idle = factors(group)
    assert idle == {"encode-0": pytest.approx(0.25**-0.8), "decode-0": 1.0}
    assert factors(group, ("encode-0", "encode"))["decode-0"] == pytest.approx(1.1)
    assert factors(group, ("decode-0", "decode"))["encode-0"] == idle["encode-0"]


def test_a_matrix_is_linear_in_who_is_busy():
    group = Colocated(("encode-0", "decode-0", "decode-1"), slowdown={"decode": {"encode": 0.3}})
    assert set(factors(group).values()) == {1.0}
    found = factors(group, ("encode-0", "encode"), ("decode-1", "decode"))
    assert found["decode-0"] == pytest.approx(1.3)
    assert found["encode-0"] == 1.0


def test_without_a_model_they_take_turns():
    found = factors(Colocated(PLACES), ("encode-0", "encode"), ("decode-0", "mixed"))
    assert found == {"encode-0": 2.0, "decode-0": 2.0}


def test_slowness_multiplies_and_ends():
    world = Interference(share=0.0)
    world.slow("decode-0", 2.0)
    world.slow("decode-0", 3.0)
    assert world.begin("decode-0", "decode") == 6.0
    world.recover("decode-0", 2.0)
    assert world.begin("decode-0", "decode") == 3.0
    assert world.begin("decode-1", "decode") == 1.0


def test_who_computes_hears_that_its_pace_changes():
    world, heard = Interference([Colocated(PLACES)]), []
    world.listen("decode-0", lambda: heard.append("decode-0"))
    world.begin("encode-0", "encode")
    world.end("encode-0", "encode")
    assert heard == ["decode-0", "decode-0"]
    world.begin("encode-1", "encode")
    assert len(heard) == 2
    world.slow("decode-0", 2.0)
    assert len(heard) == 3


def test_pictures_and_sequences_of_one_instance_take_turns():
    world = Interference()
    assert world.begin("epd-0", "encode") == 1.0
    assert world.begin("epd-0", "decode") == 2.0
    world.end("epd-0", "encode")
    assert world.begin("epd-1", "decode") == 1.0


def test_a_slice_slows_its_pictures_and_leaves_decodes_their_pace():
    world = Interference()
    assert world.begin("epd-0", "encode", 0.25) == pytest.approx(0.25**-ETA)
    assert world.begin("epd-0", "decode") == 1.0 + BANDWIDTH
    world.end("epd-0", "decode")
    assert world.begin("epd-0", "mixed") == 1.25  # a quarter of it is the pictures'
    world.end("epd-0", "encode")
    assert world.begin("epd-0", "encode", 0.5) == pytest.approx(2 * 0.5**-ETA)
    world.end("epd-0", "encode")
    world.end("epd-0", "mixed")
    assert world.begin("epd-0", "decode") == 1.0
    assert world.begin("epd-0", "encode", 0.5) == pytest.approx(0.5**-ETA)
    world.end("epd-0", "encode")
    assert world.begin("epd-0", "encode") == 2.0  # all of it: they take turns


def test_nobody_beside_leaves_pictures_all_of_a_gpu():
    """One request after the other: slices change nothing."""
    settings = ["engine.split=sis", "engine.encode_order=twsrf"]
    plain, divided = run_of("EPD1", rate=0.3), run_of("EPD1", rate=0.3, set=settings)
    first = [[row.token_times_s[0] for row in run.rows] for run in (plain, divided)]
    assert first[0] == pytest.approx(first[1], abs=1e-3)
    assert len(first[0]) > 0


def test_slices_keep_the_pace_of_decodes_beside_pictures():
    """EPD on one GPU under pictures: SpaceServe's case, in the server's own engine."""
    settings = ["engine.split=sis", "engine.encode_order=twsrf"]
    plain, divided = run_of("EPD1", rate=12.0), run_of("EPD1", rate=12.0, set=settings)
    assert median(tpots(divided.rows)) < 0.9 * median(tpots(plain.rows))
    assert max(gaps(divided.rows)) < 0.7 * max(gaps(plain.rows))
    assert encoding_s(divided) > 1.2 * encoding_s(plain)


@pytest.mark.parametrize(
    ("group", "named"),
    [
        ({"shares": (0.5,)}, "colocated.shares"),
        ({"shares": (0.8, 0.4)}, "colocated.shares"),
        ({"memory": (0.9, 0.2)}, "colocated.memory"),
        ({"shares": (0.5, 0.5), "slowdown": {"decode": {}}}, "colocated.slowdown"),
        ({"slowdown": {"decode": {"sleep": 1.0}}}, "colocated.slowdown.decode"),
        ({"slowdown": {"decode": {"encode": -1.0}}}, "colocated.slowdown.decode"),
    ],
)
def test_what_cannot_be_is_named(group, named):
    with pytest.raises(ConfigError, match=named):
        Interference([Colocated(PLACES, **group)])


def test_a_place_is_on_one_gpu():
    with pytest.raises(ConfigError, match="'decode-0' is there twice"):
        Interference([Colocated(PLACES), Colocated(("decode-0", "decode-1"))])
    assert present([Colocated(PLACES)], ["encode-0", "decode-1"]) == ()


def test_an_encoder_beside_decode_slows_it_and_saves_a_gpu():
    group = Colocated(PLACES, shares=(0.3, 0.7), eta=0.8, bandwidth=0.5, memory=(0.3, 0.7))
    beside = {"machines": {"colocated": [msgspec.to_builtins(group)]}}
    plain = run_of("E1,P1,D1", rate=9.0)
    shared = run_of("E1,P1,D1", rate=9.0, **beside)
    assert (plain.num_gpus, shared.num_gpus) == (3, 2)
    assert encoding_s(shared) == pytest.approx(encoding_s(plain) * 0.3**-0.8, rel=0.01)
    slower = [b / a for a, b in zip(tpots(plain.rows), tpots(shared.rows), strict=True)]
    assert max(slower) > 1.1
    assert min(slower) > 0.85
