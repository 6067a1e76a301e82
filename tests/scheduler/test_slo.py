"""Placement by promises: kept ones first, then the least cost to all."""

import msgspec
import pytest

from scheduler.forecast import Forecast, Terms
from scheduler.latency import Latencies
from scheduler.placement import Ask
from scheduler.predict import Speeds
from scheduler.slo import WIDTH, SloAware
from tests.scheduler.test_placement import cluster, instance, prompt
from triptych.core.catalog import LinkReport
from triptych.core.errors import Unavailable
from triptych.core.request import Slo
from triptych.core.view import Coverage, Held, Pending, Prefix

TEXT = prompt(length=1000)
BOUNDED = Ask(Slo("custom", 2.0, 0.05), num_output=50)


class Machine:
    """5 ms a step, 0.1 ms a token, 0.2 ms a decode; 0.2 ms a visual token."""

    def vision_s(self, pictures):
        return 0.002 + 2e-4 * sum(pictures)

    def language_s(self, chunks, num_decodes, context):
        tokens = sum(length for _, length in chunks)
        return 0.005 + 1e-4 * tokens + 2e-4 * num_decodes + 1e-8 * context

    def decode_run_s(self, num_decodes, context, steps):
        raise NotImplementedError


@pytest.fixture
def policy():
    return SloAware(Forecast(Latencies(Speeds(Machine(), Machine())), Terms()))


def with_load(name, **pending):
    fields = {"num_kv_blocks": 10_000}
    found = instance(name)
    about = msgspec.structs.replace(found.description, **fields)
    return msgspec.structs.replace(found, description=about, pending=Pending(**pending))


def busy(name, tokens):
    return with_load(name, prompts=1, prompt_tokens=tokens, prompt_pairs=tokens * tokens // 2)


def test_the_idlest_of_each_stage(policy):
    view = cluster(
        busy("P-0", 4000), with_load("P-1"), with_load("D-0", decodes=20), with_load("D-1")
    )
    route = policy.choose(view, TEXT)
    assert (route.prefill, route.decode) == ("P-1", "D-1")
    assert route.expected.ttft_s == pytest.approx(2 * 0.005 + 0.1, rel=0.05)
    assert 0.005 < route.expected.tpot_s < 0.007


def test_missing_stages_are_named(policy):
    for names, stage in [(["E-0", "D-0"], "prefill"), (["E-0", "P-0"], "decode"),
                         (["P-0", "D-0"], "encode"), ([], "prefill")]:  # fmt: skip
        with pytest.raises(Unavailable) as failure:
            policy.choose(cluster(*map(with_load, names)), prompt("a"))
        assert failure.value.detail.startswith(stage)


def test_failed_instances_are_avoided_while_there_are_others(policy):
    view = cluster(*map(with_load, ["E-0", "E-1", "P-0", "P-1", "D-0"]))
    route = policy.choose(view, prompt("a"), frozenset({"E-0", "P-0", "D-0"}))
    assert route.instances == {"E-1", "P-1", "D-0"}
    many = [with_load(f"P-{n}") for n in range(3 * WIDTH)]
    avoid = frozenset(f"P-{n}" for n in range(3 * WIDTH - 1))
    assert (
        policy.choose(cluster(*many, with_load("D-0")), TEXT, avoid).prefill
        == many[-1].description.id
    )


def test_numbers_must_match(policy):
    odd = msgspec.structs.replace(
        with_load("D-0"), description=instance("D-0", width=32).description
    )
    route = policy.choose(cluster(with_load("P-0"), odd, with_load("D-1", decodes=9)), TEXT)
    assert route.decode == "D-1"


def test_a_cached_beginning_is_worth_a_queue_up_to_what_it_saves(policy):
    held = Coverage({"P-0": Held((800, 800, 800))})
    policy.forecast.latencies.report("P-1", [LinkReport("P-0", "tcp", 9.0, 1e9, 0)])  # no loans
    for tokens, chosen in [(500, "P-0"), (1500, "P-1")]:
        view = cluster(busy("P-0", tokens), with_load("P-1"), with_load("D-0"))
        route = policy.choose(view, TEXT, coverage=held)
        assert route.prefill == chosen
    assert policy.choose(
        cluster(with_load("P-0"), with_load("D-0")), TEXT, coverage=held
    ).cached_tokens == 800  # fmt: skip


def test_a_prefix_is_lent_over_a_fast_link_and_computed_beside_a_slow_one(policy):
    view = cluster(busy("P-0", 9000), with_load("P-1"), with_load("D-0"))
    held = Coverage({"P-0": Held((800, 800, 800))})
    policy.forecast.latencies.report("P-1", [LinkReport("P-0", "tcp", 0.0, 1e9, 0)])
    route = policy.choose(view, TEXT, coverage=held)
    assert (route.prefill, route.prefix) == ("P-1", Prefix("P-0", 800))
    policy.forecast.latencies.report("P-1", [LinkReport("P-0", "tcp", 0.5, 1e9, 0)])
    route = policy.choose(view, TEXT, coverage=held)
    assert (route.prefill, route.prefix) == ("P-1", None)


def test_the_link_from_prefill_to_decode_counts(policy):
    view = cluster(with_load("P-0"), with_load("D-0"), with_load("D-1", decodes=3))
    policy.forecast.latencies.report("D-0", [LinkReport("P-0", "tcp", 0.3, 1e9, 0)])
    assert policy.choose(view, TEXT, ask=BOUNDED).decode == "D-1"


def test_pictures_are_spread_and_found_again(policy):
    view = cluster(*(with_load(f"E-{n}") for n in range(4)), with_load("P-0"), with_load("D-0"))
    pictures = prompt("a", "b", "c", "d")
    assert len(set(policy.choose(view, pictures).encode)) == 4
    key = pictures.items[1].key
    held = Coverage({"E-3": Held(items=frozenset({key})), "P-0": Held()})
    assert policy.choose(view, pictures, coverage=held).encode[1] == "E-3"
    held = Coverage({"P-0": Held(items=frozenset({key}))})
    assert policy.choose(view, pictures, coverage=held).encode[1] is None


def test_a_picture_is_encoded_here_or_there_by_cost(policy):
    """Local encode delays the prompt on the same machine; a busy encoder delays it elsewhere."""
    big = prompt("a", length=2000)
    item = msgspec.structs.replace(big.items[0], offset=1000, num_tokens=900)
    big = msgspec.structs.replace(big, items=(item,))
    idle = cluster(with_load("EP-0"), with_load("E-0"), with_load("D-0"))
    assert policy.choose(idle, big).encode == ("E-0",)
    far = cluster(
        with_load("EP-0"), with_load("E-0", pictures=9, image_tokens=9000), with_load("D-0")
    )
    assert policy.choose(far, big).encode == ("EP-0",)


def test_two_that_encode_and_prefill_never_encode_for_each_other(policy):
    view = cluster(with_load("EP-0"), busy("EP-1", 9000), with_load("D-0"))
    for avoid in [(), ("EP-1",)]:
        route = policy.choose(view, prompt("a", "b"), frozenset(avoid))
        assert set(route.encode) == {route.prefill}


def test_a_small_append_is_computed_where_the_conversation_is_decoded(policy):
    """PPD; also on an instance that serves decode alone, if it has all pictures in its KV."""
    view = cluster(*map(with_load, ["E-0", "P-0", "D-0", "D-1"]))
    held = Coverage({"D-1": Held((960, 960, 960))})
    route = policy.choose(view, TEXT, coverage=held, ask=BOUNDED)
    assert (route.prefill, route.decode, route.encode) == ("D-1", "D-1", ())
    pictures = prompt("a", length=1000)
    route = policy.choose(view, pictures, coverage=held, ask=BOUNDED)
    assert (route.prefill, route.decode, route.encode) == ("D-1", "D-1", (None,))


def test_a_large_append_beside_many_decodes_is_not(policy):
    """S = dTTFT - dTPOT of the others: 900 tokens would stop 150 sequences for 0.1 s."""
    held = Coverage({"D-0": Held((96, 96, 96))})
    view = cluster(with_load("P-0"), with_load("D-0", decodes=150, context_tokens=9000))
    route = policy.choose(view, TEXT, coverage=held, ask=BOUNDED)
    assert (route.prefill, route.decode) == ("P-0", "D-0")


def test_a_promise_is_kept_before_costs_are_saved(policy):
    """With no bound the mixed instance is cheaper; the bound on gaps drives the request off it."""
    mixed = with_load("PD-0", decodes=55, context_tokens=55_000)
    view = cluster(mixed, busy("P-0", 3000), with_load("D-0"))
    strict = Ask(Slo("custom", 9.0, 0.012), num_output=3)
    lax = Ask(Slo("custom", 0.2, None), num_output=3)
    assert policy.choose(view, prompt(length=200), ask=strict).decode == "D-0"
    assert policy.choose(view, prompt(length=200), ask=lax).prefill == "PD-0"


def test_if_no_promise_can_be_kept_the_least_late_one_is_taken(policy):
    view = cluster(busy("P-0", 90_000), busy("P-1", 80_000), with_load("D-0"))
    held = Coverage({"P-0": Held((800, 800, 800))})
    assert policy.choose(view, TEXT, coverage=held, ask=BOUNDED).prefill == "P-1"


def test_a_full_decode_instance_is_one_to_wait_for(policy):
    full = with_load("D-0", decodes=64, context_tokens=10, output_tokens=64 * 200)
    view = cluster(with_load("P-0"), full, with_load("D-1", decodes=60, context_tokens=90_000))
    assert policy.choose(view, TEXT, ask=BOUNDED).decode == "D-1"


def test_of_many_the_best_are_found(policy):
    prefills = [busy(f"P-{n}", 900 + 10 * ((7 * n) % 100)) for n in range(100)]
    decodes = [with_load(f"D-{n}", decodes=(3 * n) % 100 + 1) for n in range(100)]
    route = policy.choose(cluster(*prefills, *decodes), TEXT, ask=BOUNDED)
    assert (route.prefill, route.decode) == ("P-0", "D-0")
    near = msgspec.structs.replace(
        decodes[5],
        description=msgspec.structs.replace(
            decodes[5].description,
            transfer=msgspec.structs.replace(decodes[5].description.transfer, machine="m0"),
        ),
    )
    home = msgspec.structs.replace(
        prefills[0],
        description=msgspec.structs.replace(
            prefills[0].description, transfer=near.description.transfer
        ),
    )
    policy.forecast.latencies.report("D-0", [LinkReport("P-0", "tcp", 9.0, 1e9, 0)])
    others = [
        msgspec.structs.replace(each, pending=Pending(decodes=200))
        for each in decodes[:5] + decodes[6:]
    ]
    assert policy.choose(cluster(home, *prefills[1:], near, *others), TEXT).decode == "D-5"
