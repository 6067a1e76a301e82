"""Plans: what is proposed fits, is simulated and ranked by that, and can be served from a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sources.registry import workload
from bench.workload import Arrival, Image, Text
from scheduler.planner.search import role_sets
from simulator.bayes import Space, shared_out
from simulator.planning import Wish, candidates, plan, serve_config, shapes
from triptych.core.config import load
from triptych.core.errors import ConfigError
from triptych.core.topology import name, parse

WISH = Wish(
    costs="h200:qwen2.5-vl-7b",
    workload="synthetic:image_heavy",
    num_gpus=3,
    keep=2,
    duration_s=1.0,
    warmup_s=0.1,
    seeds=(1,),
    tolerance=0.9,
)


def gpus(system):
    return sum(count * system.tp.get(name(role), 1) for role, count in parse(system.topology))


def test_what_was_there_before_is_not_computed_again():
    first = Arrival(0.0, (Text(1, 50), Image(7, 280, 280), Text(2, 10)), 5, answer=3)
    second = Arrival(1.0, (*first.parts, Text(3, 5), Text(4, 20)), 6)
    third = Arrival(2.0, (Text(9, 30), Image(7, 280, 280)), 7)
    one, two, three = shapes([first, second, third])
    assert (one.pictures, one.prompt, one.cached) == ((100,), 160, 0)
    assert (two.pictures, two.prompt, two.cached) == ((), 185, 160)
    assert (three.pictures, three.prompt, three.cached) == ((), 130, 0), "its embedding is cached"


def test_shapes_of_a_named_workload_are_those_of_its_requests():
    arrivals = list(workload("synthetic:image_heavy").arrivals(2.0, 20.0, 1))
    for shape, arrival in zip(shapes(arrivals), arrivals, strict=True):
        assert shape.prompt == arrival.num_prompt
        assert len(shape.pictures) == len(arrival.images)


def test_a_plan_uses_its_gpus_and_is_ranked_by_simulation(tmp_path):
    found = plan(WISH)
    assert len(found) == WISH.keep
    assert [one.rate for one in found] == sorted((one.rate for one in found), reverse=True)
    assert all(one.rate > 0 and gpus(one.system) <= 3 for one in found)
    written = tmp_path / "plan.toml"
    written.write_text(serve_config(found[0], "examples/demo_model"))
    config = load(written, environment={})
    assert config.cluster.topology == found[0].system.topology
    assert config.model.path == "examples/demo_model"


def test_bayesian_search_begins_with_theory_and_adds_policies():
    pytest.importorskip("optuna", reason="optuna is not installed (the extra sim)")
    wish = Wish(
        **{name: getattr(WISH, name) for name in WISH.__struct_fields__} | {"trials": 2, "keep": 1}
    )
    found = plan(wish)
    tried = [one for one in found if one.why == "Bayesian search"]
    assert 1 <= len(tried) <= wish.keep
    assert all(gpus(one.system) == 3 for one in tried)
    assert all(
        any(each.startswith("router.placement=") for each in one.system.set) for one in tried
    )


def test_candidates_are_points_of_the_space():
    class Fixed:
        def __init__(self, point):
            self.point = point

        def suggest_categorical(self, name, choices):
            assert self.point[name] in choices
            return self.point[name]

        def suggest_float(self, name, low, high):
            assert low <= self.point[name] <= high
            return self.point[name]

    space = Space(3)
    for candidate in candidates(WISH):
        system = space.suggest(Fixed(space.point(candidate)))
        assert set(system.topology.split(",")) == set(candidate.topology.split(","))


@given(
    words=st.sampled_from([tuple(map(name, roles)) for roles in role_sets()]),
    extra=st.integers(0, 60),
    data=st.data(),
)
def test_gpus_are_shared_out_whole(words, extra, data):
    degrees = {word: data.draw(st.sampled_from([1, 2, 4])) for word in words}
    weights = {word: data.draw(st.floats(0.05, 1.0)) for word in words}
    number = sum(degrees.values()) + extra
    counts = shared_out(number, degrees, weights)
    used = sum(counts[word] * degrees[word] for word in words)
    assert min(counts.values()) >= 1
    assert number - min(degrees.values()) < used <= number


def test_too_few_gpus_are_refused():
    with pytest.raises(ConfigError, match="fewer"):
        shared_out(2, {"E": 1, "P": 1, "D": 1}, {"E": 1.0, "P": 1.0, "D": 1.0})
    with pytest.raises(ConfigError, match="none of"):
        candidates(Wish("h200:qwen2.5-vl-7b", "synthetic:servegen", 8, planner="x"))
