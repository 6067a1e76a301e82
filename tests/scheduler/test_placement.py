from collections import Counter

import pytest

from scheduler.placement import ENCODE_SLACK, LeastLoaded, RoundRobin
from triptych.core.errors import Unavailable
from triptych.core.handoff import Endpoint
from triptych.core.hashing import digest
from triptych.core.layout import Layout
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.request import Item, Prompt
from triptych.core.view import ClusterView, Description, InstanceView, Route

STAGES = {stage.letter: stage for stage in Stage}


def instance(name, load=0, *, model="m", kv=16, width=8, embedding=16, state=InstanceState.READY):
    """``P-1`` is a prefill instance, ``PD-0`` one for both, and so on."""
    letters = name.partition("-")[0]
    description = Description(
        id=name,
        role=tuple(STAGES[letter] for letter in letters),
        model=model,
        transfer=Endpoint(),
        kv=None if letters == "E" else Layout("kv", model, "float32", (2, 2, kv, 1, width), kv),
        embedding=None
        if letters == "D"
        else Layout("embedding", model, "float32", (embedding, width), embedding),
        num_kv_blocks=8,
        num_embedding_blocks=8,
        max_tokens=100,
        pid=1,
        memory_bytes={},
    )
    return InstanceView(description, state, {}, {STAGES[letters[0]].value: load})


def cluster(*instances):
    views = [each if isinstance(each, InstanceView) else instance(each) for each in instances]
    return ClusterView(tuple(views))


def prompt(*pictures, length=40):
    items = [
        Item(digest("item", name.encode()), 5 * index, 4, (1, 4, 4))
        for index, name in enumerate(pictures)
    ]
    return Prompt(tuple(range(max(length, 5 * len(items)))), tuple(items))


TEXT = prompt()


@pytest.fixture(params=[LeastLoaded, RoundRobin])
def policy(request):
    return request.param()


def test_three_pools(policy):
    view = cluster("E-0", "P-0", "D-0")
    assert policy.choose(view, TEXT) == Route((), "P-0", "D-0")
    assert policy.choose(view, prompt("a", "b")) == Route(("E-0", "E-0"), "P-0", "D-0")


def test_one_instance_for_all(policy):
    assert policy.choose(cluster("EPD-0"), prompt("a")) == Route(("EPD-0",), "EPD-0", "EPD-0")


def test_prefill_and_decode_together_where_possible(policy):
    view = cluster("PD-0", "PD-1", "E-0")
    for _ in range(4):
        route = policy.choose(view, TEXT)
        assert route.prefill == route.decode


@pytest.mark.parametrize(
    ("names", "stage"),
    [
        (["E-0", "D-0"], "prefill"),
        (["E-0", "P-0"], "decode"),
        (["P-0", "D-0"], "encode"),
        ([], "prefill"),
    ],
)
def test_missing_stage_is_named(policy, names, stage):
    with pytest.raises(Unavailable) as failure:
        policy.choose(cluster(*names), prompt("a"))
    assert failure.value.detail.startswith(stage)


def test_text_needs_no_encoder(policy):
    assert policy.choose(cluster("P-0", "D-0"), TEXT).encode == ()


@pytest.mark.parametrize("state", [one for one in InstanceState if one is not InstanceState.READY])
def test_only_ready_instances_serve(policy, state):
    view = cluster("P-0", "D-0", instance("P-1", state=state), instance("D-1", state=state))
    for _ in range(3):
        assert policy.choose(view, TEXT) == Route((), "P-0", "D-0")


def test_numbers_must_match(policy):
    view = cluster("P-0", instance("D-0", width=32), instance("D-1", model="other"), "D-2")
    assert policy.choose(view, TEXT).decode == "D-2"
    with pytest.raises(Unavailable, match="decode"):
        policy.choose(cluster("P-0", instance("D-0", width=32)), TEXT)
    view = cluster("P-0", "D-0", instance("E-0", width=4), instance("E-1", model="o"), "E-2")
    for _ in range(3):
        assert policy.choose(view, prompt("a")).encode == ("E-2",)
    with pytest.raises(Unavailable, match="encode"):
        policy.choose(cluster("P-0", "D-0", instance("E-0", width=4)), prompt("a"))


def test_blocks_may_be_of_any_size(policy):
    view = cluster(instance("E-0", embedding=4), "P-0", instance("D-0", kv=32))
    assert policy.choose(view, prompt("a")) == Route(("E-0",), "P-0", "D-0")


def test_prefill_without_a_matching_encoder_is_passed_over(policy):
    view = cluster(instance("P-0", width=4), instance("P-1", 900), "D-0", "E-0")
    for _ in range(3):
        assert policy.choose(view, prompt("a")).prefill == "P-1"


def test_failed_instances_are_avoided_while_there_are_others(policy):
    view = cluster("E-0", "E-1", "P-0", "P-1", "D-0")
    avoid = frozenset({"E-0", "P-0", "D-0"})
    for _ in range(3):
        assert policy.choose(view, prompt("a"), avoid) == Route(("E-1",), "P-1", "D-0")


def test_least_loaded_pair():
    view = cluster(instance("P-0", 90), instance("P-1", 10), instance("D-0", 5), instance("D-1", 9))
    assert LeastLoaded().choose(view, TEXT) == Route((), "P-1", "D-0")


def test_transfer_counts_as_computing_the_prompt():
    busy = cluster(instance("PD-0", len(TEXT) + 1), "P-0", "D-0")
    idle = cluster(instance("PD-0", len(TEXT) - 1), "P-0", "D-0")
    assert LeastLoaded().choose(busy, TEXT) == Route((), "P-0", "D-0")
    assert LeastLoaded().choose(idle, TEXT) == Route((), "PD-0", "PD-0")


def test_pictures_of_one_request_are_spread():
    view = cluster("E-0", "E-1", "E-2", "P-0", "D-0")
    route = LeastLoaded().choose(view, prompt("a", "b", "c", "d", "e"))
    assert sorted(Counter(route.encode).values()) == [1, 2, 2]


def test_equal_pictures_go_to_one_encoder():
    view = cluster("E-0", "E-1", "E-2", "P-0", "D-0")
    route = LeastLoaded().choose(view, prompt("a", "b", "a", "a"))
    assert route.encode[0] == route.encode[2] == route.encode[3] != route.encode[1]


def test_picture_returns_to_its_encoder_unless_that_is_much_busier():
    names = [f"E-{index}" for index in range(4)]
    home = LeastLoaded().choose(cluster(*names, "P-0", "D-0"), prompt("a")).encode[0]

    def choose(load):
        encoders = [instance(name, load if name == home else 0) for name in names]
        return LeastLoaded().choose(cluster(*encoders, "P-0", "D-0"), prompt("a")).encode[0]

    assert choose(ENCODE_SLACK) == home
    assert choose(ENCODE_SLACK + 1) != home


def test_few_pictures_move_when_an_encoder_comes_or_restarts():
    def homes(names):
        view = cluster(*names, "P-0", "D-0")
        return [LeastLoaded().choose(view, prompt(f"{index}")).encode[0] for index in range(300)]

    before = homes(["E-0", "E-1", "E-2"])
    assert min(Counter(before).values()) > 60
    after = homes(["E-0", "E-1", "E-2", "E-3"])
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {"E-3"}
    restarted = homes(["E-0", "E-1@7", "E-2"])
    assert [name.partition("@")[0] for name in restarted] == before


@pytest.mark.parametrize("avoid", [(), ("EP-0",), ("EP-0", "EP-1"), ("D-0", "E-0")])
@pytest.mark.parametrize("more", [(), ("E-0",)])
def test_prefill_that_encodes_does_so_for_itself(policy, avoid, more):
    """So no two instances wait for room in each other's cache."""
    view = cluster(instance("EP-0", 30), instance("EP-1", 2 * ENCODE_SLACK), *more, "D-0")
    for _ in range(4):
        route = policy.choose(view, prompt("a", "b", "c"), frozenset(avoid))
        others = set(route.encode) - {route.prefill}
        assert others <= {"E-0"}
        assert not others or {"EP-0", "EP-1"} <= set(avoid)


def test_prefill_that_encodes_but_failed_leaves_it_to_others(policy):
    view = cluster("EP-0", "E-0", "D-0")
    for _ in range(3):
        route = policy.choose(view, prompt("a"), frozenset({"EP-0"}))
        assert route == Route(("E-0",), "EP-0", "D-0")


def test_round_robin_takes_turns():
    policy, view = RoundRobin(), cluster("E-0", "E-1", "P-0", "P-1", "D-0")
    routes = [policy.choose(view, prompt("a")) for _ in range(4)]
    assert [route.prefill for route in routes] == ["P-0", "P-1", "P-0", "P-1"]
    assert [route.encode[0] for route in routes] == ["E-0", "E-1", "E-0", "E-1"]
