"""Small values and pure functions that everything relies on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.core import topology
from triptych.core.census import Census, Holding
from triptych.core.clock import ManualClock, MonotonicClock
from triptych.core.errors import BY_CODE, ConfigError, InvariantBroken, RequestError, from_code
from triptych.core.hashing import blocks, digest, item_key, root_key, tenant_salt
from triptych.core.ids import TenantId
from triptych.core.layout import Layout
from triptych.core.lifecycle import RequestState, Stage, can_follow
from triptych.core.metrics import is_attained, latency, slo_class

FIELDS = st.lists(st.binary(max_size=4), max_size=4)


@given(FIELDS, FIELDS)
def test_digests_of_different_fields_differ(one: list[bytes], other: list[bytes]):
    assert (digest("d", *one) == digest("d", *other)) == (one == other)
    assert digest("d", *one) != digest("e", *one)


def test_block_keys_tell_everything_apart():
    root, picture = root_key(b"salt", "model"), b"k" * 32
    prompts = [
        (root, [1, 2], []),
        (root, [2, 1], []),
        (root, [1, 2], [(-3, 1, picture)]),
        (root, [1, 2], [(-4, 1, picture)]),
        (root, [1, 2], [(1, 2, picture)]),
        (root, [1, 2], [(0, 2, picture)]),
        (root, [1, 2], [(-3, 1, b"l" * 32)]),
        (root_key(b"other", "model"), [1, 2], []),
        (root_key(b"salt", "other"), [1, 2], []),
        (blocks(root, [1, 2], 2)[0][0], [1, 2], []),
    ]
    keys = [blocks(parent, tokens, 2, items)[0][0] for parent, tokens, items in prompts]
    assert len(set(keys)) == len(keys)


@given(st.data())
def test_a_sequence_has_the_blocks_of_its_parts(data):
    """All at once, or the rest behind any of its blocks."""
    size, count = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 20))
    tokens, items, at = list(range(7, 7 + count)), [], 0
    while at < count:
        offset = at + data.draw(st.integers(0, 3))
        at = offset + data.draw(st.integers(1, 5))
        items.append((offset, at, bytes([at])))
    items = [each for each in items if each[0] < count]
    whole = blocks(b"root", tokens, size, items)
    assert len(whole) == count // size
    for first in range(len(whole) + 1):
        start = first * size
        parent = whole[first - 1][0] if first else b"root"
        rest = [(low - start, high - start, key) for low, high, key in items if high > start]
        assert blocks(parent, tokens[start:], size, rest) == whole[first:]


def test_the_key_of_a_block_is_what_it_has_always_been():
    """Tiers on disk and directories of other versions hold keys: a change is a new ``SCHEMA``."""
    root = root_key(b"salt", "model")
    found = blocks(root, [1, 2, 3, 4, 5], 2, [(1, 4, b"k" * 32)])
    assert [key.hex()[:16] for key, _ in found] == ["5fd4f4c234c6af69", "0b16cbe0b168aff7"]


def test_item_keys_tell_shapes_options_and_tenants_apart():
    keys = [
        item_key(b"s", "p", 30, 150, "o", b"x"),
        item_key(b"s", "p", 150, 30, "o", b"x"),
        item_key(b"s", "p", 30, 150, "O", b"x"),
        item_key(b"s", "q", 30, 150, "o", b"x"),
        item_key(b"t", "p", 30, 150, "o", b"x"),
        item_key(b"s", "p", 30, 150, "ox", b""),
    ]
    assert len(set(keys)) == len(keys)
    salts = {tenant_salt(key, TenantId(name)) for key in (b"1", b"2") for name in ("a", "b")}
    assert len(salts) == 4


@given(
    st.dictionaries(
        st.sets(st.sampled_from("EPD"), min_size=1).map(frozenset), st.integers(1, 99), min_size=1
    )
)
def test_topologies_read_what_was_written(counts: dict[frozenset[str], int]):
    text = ",".join("".join(sorted(role)) + str(count) for role, count in counts.items())
    if set().union(*counts) != set("EPD"):
        with pytest.raises(ConfigError):
            topology.parse(text)
        return
    parsed = topology.parse(text)
    assert {frozenset(s.letter for s in role): count for role, count in parsed} == counts
    assert all(topology.parse(topology.name(frozenset(Stage)) + "1") for _ in parsed)


@pytest.mark.parametrize(
    "text", ["", "E", "E0,P1,D1", "EE1,PD1", "X1", "E1,E2,PD1", "E1;PD1", "-E1,PD1"]
)
def test_wrong_topologies_are_refused(text: str):
    with pytest.raises(ConfigError, match="topology"):
        topology.parse(text)


def test_errors_survive_a_wire():
    for code, kind in BY_CODE.items():
        error = from_code(code, "what happened")
        assert type(error) is kind
        assert error.code == code
        assert "what happened" not in error.public
    assert isinstance(from_code("invalid_request", "no"), RequestError)
    assert isinstance(from_code("never heard of", ""), InvariantBroken)


def test_request_errors_name_the_field():
    assert RequestError("at most 3", field="n").public == "n: at most 3"


def test_layouts_count_bytes_and_blocks():
    layout = Layout("kv", "m", "bfloat16", (28, 2, 16, 4, 128), 16)
    assert layout.block_bytes == 16 * 57_344
    assert [layout.num_blocks(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
    assert layout.fingerprint != Layout("kv", "n", "bfloat16", (28, 2, 16, 4, 128), 16).fingerprint


@given(st.sampled_from(RequestState), st.sampled_from(RequestState))
def test_nothing_follows_the_end_and_nothing_goes_back_to_the_start(
    before: RequestState, after: RequestState
):
    allowed = not before.is_terminal and after is not RequestState.ACCEPTED
    assert can_follow(before, after) == allowed


def test_latencies():
    seen = latency(10.0, [10.5, 10.6, 10.8])
    assert (seen.ttft_s, len(seen.itl_s)) == (0.5, 2)
    assert seen.tpot_s == pytest.approx(0.15)
    assert not is_attained(seen, slo_class("interactive", 1))
    assert is_attained(latency(0.0, [1.9]), slo_class("interactive", 1))
    assert is_attained(latency(0.0, [99.0]), slo_class("batch", 0))
    assert slo_class("multi-image", 4).ttft_s == pytest.approx(3.0)
    with pytest.raises(ValueError, match="token_times_s"):
        latency(0.0, [])


def test_a_census_is_idle_only_when_every_block_is_accounted_for():
    totals = {"kv_block.total": 4, "kv_block.free": 3, "kv_block.cached": 1}
    assert Census("i", (), totals).is_idle
    assert not Census("i", (), {**totals, "kv_block.free": 2}).is_idle
    assert not Census("i", (Holding("lease", "j", 1),), totals).is_idle


def test_clocks_run_forward():
    clock = ManualClock(3.0)
    clock.advance(1.5)
    assert clock.now() == 4.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
    real = MonotonicClock()
    assert real.now() <= real.now()
