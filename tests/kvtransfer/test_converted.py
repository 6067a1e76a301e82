"""Whole transfers between stores of other shapes and through other wire formats, over every way."""

import asyncio
import random
import time
from contextlib import contextmanager
from itertools import combinations, product

import numpy as np
import pytest

from kvtransfer.converted import ConvertedLanding
from tests.kvtransfer.shapes import Numbers, as_type, kv, number, replaced, rows
from tests.kvtransfer.stores import CALM, EVERYWHERE, pair, ref_to
from tests.patience import PATIENCE_S
from triptych.core.clock import MonotonicClock

WIRES = ("raw", "int8", "fp8")
SIZES = ((4, 16), (16, 4))
DTYPES = (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32"))
CROSSED = {
    f"kv, shards {shards}, blocks {sizes}, {dtypes}": tuple(
        kv(size, shards=count, dtype=dtype)
        for size, count, dtype in zip(sizes, shards, dtypes, strict=True)
    )
    for shards, sizes, dtypes in product(((1, 1), (1, 2), (2, 1)), SIZES, DTYPES)
} | {
    f"rows, blocks {sizes}, {dtypes}": tuple(
        rows(size, dtype=dtype) for size, dtype in zip(sizes, dtypes, strict=True)
    )
    for sizes, dtypes in product(SIZES, DTYPES)
}
ODD = {
    "same": (kv(), kv()),
    "only shards, 1 to 2": (kv(), kv(shards=2)),
    "only shards, 2 to 1": (kv(shards=2), kv()),
    "blocks of 3 to 7": (kv(3), kv(7)),
    "float16 to float32": (kv(dtype="float16"), kv()),
    "all at once": (kv(5, shards=2, heads=6), kv(3, shards=3, heads=6, dtype="bfloat16")),
    "rows without groups": (rows(3, width=50), rows(7, width=50, dtype="float16")),
}
SHAPES = CROSSED | ODD
pytestmark = pytest.mark.usefixtures("no_leak")


async def fetch(both, num_tokens, ours, first, seen=None):
    """Fetch the blocks of a promise of ``num_tokens`` from own block ``first`` on."""
    ref = ref_to("giver@0", both.endpoint, 0, both.source.layout)
    ref = replaced(ref, num_tokens=num_tokens)
    until_s = MonotonicClock().now() + PATIENCE_S
    seen = [] if seen is None else seen
    return await both.receiver.fetch(ref, both.target, ours, first, seen.append, until_s)


async def give(offer, theirs, layers):
    """Append blocks in small lots, the layers of a lot one after the other."""
    for at in range(0, len(theirs), 3):
        for upto in range(1, layers + 1):
            offer.append(theirs[at : at + 3], upto)
            await asyncio.sleep(0)
    offer.finish(b"tail")


def assert_taken(both, theirs, ours, tokens, wire, before):
    """Wanted tokens are the giver's; every other byte is as it was."""
    giver, taker = both.source.layout, both.target.layout
    num_tokens = len(tokens)
    sent = both.source.tokens(theirs, tokens.stop)[tokens.start :]
    found = both.target.tokens(ours, num_tokens)
    if wire == "raw":
        assert found.tobytes() == as_type(sent, giver.dtype, taker.dtype).tobytes()
    else:
        exact, came = number(sent, giver.dtype), number(found, taker.dtype)
        assert (np.abs(came - exact) <= bound(exact, wire, taker.dtype)).all()
        assert not np.array_equal(came, exact)
    with mirror(both.target, before) as then:
        for block in set(range(then.num_blocks)) - set(ours):
            assert both.target.block(block) == then.block(block)
        if wire != "raw" or giver != taker:  # equal blocks come whole, their unused end too
            everything = len(ours) * taker.block_size
            kept = then.tokens(ours, everything)[num_tokens:]
            assert both.target.tokens(ours, everything)[num_tokens:].tobytes() == kept.tobytes()


def bound(exact, wire, dtype):
    """How far off a number may be: the format's error, and bfloat16's rounding on top."""
    most = np.abs(exact).max(axis=-1, keepdims=True)
    off = most / 253 if wire == "int8" else np.maximum(np.abs(exact) / 16.9, most / 458_000)
    return off if dtype == "float32" else off + (np.abs(exact) + off) / 256


@contextmanager
def mirror(store, content):
    """A store of the same shape with other bytes."""
    other = Numbers(store.num_blocks, store.layout, 0)
    other.view[:] = content
    try:
        yield other
    finally:
        other.close()


def crossed() -> list[object]:
    """Shapes, wires and ways. Every run has each shape on each wire within the process and by one
    other way, and by the way that is left over; so each two of them meet."""
    found, others = [], len(EVERYWHERE) - 1
    for (i, shape), (j, wire), (k, way) in product(*map(enumerate, (SHAPES, WIRES, EVERYWHERE))):
        name, marks = (way, []) if isinstance(way, str) else (way.values[0], [*way.marks])
        turns = {0, 1 + (i + j) % others, *([1 + (i + 3) % others] if j == i % len(WIRES) else [])}
        marks += [] if k in turns else [pytest.mark.matrix]
        found.append(pytest.param(shape, wire, name, marks=marks))
    return found


def test_what_every_run_has_meets_in_pairs():
    always = [one for one in crossed() if pytest.mark.matrix not in one.marks]
    for a, b in combinations(range(3), 2):
        every = {(one.values[a], one.values[b]) for one in crossed()}
        assert {(one.values[a], one.values[b]) for one in always} == every


@pytest.mark.parametrize(("shape", "wire", "way"), crossed())
async def test_numbers_arrive_whatever_the_shapes_and_the_wire(shape, wire, way):
    giver, taker = SHAPES[shape]
    rng = random.Random(f"{shape} {wire} {way}")
    config = replaced(CALM, wire=wire, message_bytes=2 * giver.block_bytes)
    source = Numbers(33, giver, 1, is_sealed=rng.random() < 0.5)
    async with pair(way, config, source=source, target=Numbers(70, taker, 2)) as both:
        for turn in range(3):
            count = rng.randint(1, 9)
            num_tokens = count * giver.block_size - rng.randrange(giver.block_size)
            theirs = rng.sample(range(33), count)
            hit = rng.randrange(taker.num_blocks(num_tokens)) if turn else 0
            ours = rng.sample(range(70), taker.num_blocks(num_tokens) - hit)
            before, seen = bytes(both.target.view), []
            fetching = asyncio.create_task(fetch(both, num_tokens, ours, hit, seen))
            await give(both.offer(), theirs, giver.num_layers)
            assert await fetching == b"tail"
            tokens = range(hit * taker.block_size, num_tokens)
            assert_taken(both, theirs, ours, tokens, wire, before)
            assert seen[-1] == len(ours)
            assert seen == sorted(seen)
            await both.assert_idle()
            both.outbox.offers._verdicts.clear()  # the same handle again


@pytest.mark.parametrize("way", EVERYWHERE)
@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("wire", ["int8", "fp8"])
async def test_a_slow_taker_reads_every_slot_before_it_is_used_again(
    wire, digest, way, monkeypatch
) -> None:
    """Everything is there to be sent at once, many times more pieces than there are slots."""
    bring = ConvertedLanding.bring

    def slowly(self, *piece):
        time.sleep(0.003)
        return bring(self, *piece)

    monkeypatch.setattr(ConvertedLanding, "bring", slowly)
    of, num_blocks = kv(), 32
    config = replaced(CALM, wire=wire, digest=digest, message_bytes=of.block_bytes)
    assert num_blocks > 4 * config.credits
    source = Numbers(num_blocks, of, 1, is_sealed=True)
    async with pair(way, config, source=source, target=Numbers(num_blocks, of, 2)) as both:
        everything, num_tokens = list(range(num_blocks)), num_blocks * of.block_size
        before, offer = bytes(both.target.view), both.offer()
        offer.append(everything, of.num_layers)
        offer.finish(b"tail")
        assert await fetch(both, num_tokens, everything, 0) == b"tail"
        assert_taken(both, everything, everything, range(num_tokens), wire, before)
        await both.assert_idle()


@pytest.mark.parametrize("way", ["shm", "tcp"])
@pytest.mark.parametrize("wire", ["raw", "int8"])
async def test_a_giver_uses_no_more_credits_than_it_has_slots(wire, way):
    of = kv()
    config = replaced(CALM, wire=wire, message_bytes=of.block_bytes, credits=8)
    giver = replaced(config, credits=2)
    source = Numbers(65, of, 1)
    async with pair(way, config, giver=giver, source=source, target=Numbers(65, of, 2)) as both:
        theirs, ours = list(range(60)), list(range(60))
        before = bytes(both.target.view)
        offer = both.offer()
        offer.append(theirs)
        offer.finish(b"tail")
        num_tokens = len(ours) * of.block_size
        assert await fetch(both, num_tokens, ours, 0) == b"tail"
        assert_taken(both, theirs, ours, range(num_tokens), wire, before)
        await both.assert_idle()
