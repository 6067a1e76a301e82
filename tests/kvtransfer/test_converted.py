"""Whole transfers between stores of other shapes and through other wire formats, over every way."""

import asyncio
import random
from contextlib import contextmanager

import numpy as np
import pytest

from tests.kvtransfer.shapes import Numbers, as_type, kv, number, replaced, rows
from tests.kvtransfer.stores import EVERYWHERE, QUICK, pair, ref_to
from triptych.core.clock import MonotonicClock

WIRES = ("raw", "int8", "fp8")
SHAPES = {
    "same": (kv(), kv()),
    "shards 1 to 2": (kv(), kv(shards=2)),
    "shards 2 to 1": (kv(shards=2), kv()),
    "blocks of 4 to 16": (kv(4), kv(16)),
    "blocks of 16 to 4": (kv(16), kv(4)),
    "blocks of 3 to 7": (kv(3), kv(7)),
    "float32 to bfloat16": (kv(), kv(dtype="bfloat16")),
    "bfloat16 to float32": (kv(dtype="bfloat16"), kv()),
    "all at once": (kv(5, shards=2, heads=6), kv(3, shards=3, heads=6, dtype="bfloat16")),
    "rows": (rows(4), rows(6, dtype="bfloat16")),
}
pytestmark = pytest.mark.usefixtures("no_leak")


async def fetch(both, num_tokens, ours, first, seen=None):
    """Fetch the blocks of a promise of ``num_tokens`` from own block ``first`` on."""
    ref = ref_to("giver@0", both.endpoint, 0, both.source.layout)
    ref = replaced(ref, num_tokens=num_tokens)
    until_s = MonotonicClock().now() + 20
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


@pytest.mark.parametrize("way", EVERYWHERE)
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("shape", SHAPES)
async def test_numbers_arrive_whatever_the_shapes_and_the_wire(shape, wire, way):
    giver, taker = SHAPES[shape]
    rng = random.Random(f"{shape} {wire} {way}")
    config = replaced(QUICK, wire=wire, message_bytes=2 * giver.block_bytes)
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


@pytest.mark.parametrize("way", ["shm", "tcp"])
@pytest.mark.parametrize("wire", ["raw", "int8"])
async def test_a_giver_uses_no_more_credits_than_it_has_slots(wire, way):
    of = kv()
    config = replaced(QUICK, wire=wire, message_bytes=of.block_bytes, credits=8)
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
