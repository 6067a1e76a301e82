"""Whole transfers between an outbox and a receiver, over every transport."""

import asyncio
import os
import random

import msgspec
import pytest

from kvtransfer.build import build_outbox
from kvtransfer.lease import Release
from tests.kvtransfer.stores import (
    BETWEEN_PROCESSES,
    CALM,
    EVERYWHERE,
    QUICK,
    SECRET,
    Store,
    layout,
    only,
    pair,
    ref_to,
)
from tests.patience import PATIENCE_S
from triptych.core.clock import MonotonicClock
from triptych.core.errors import (
    InstanceLost,
    InvariantBroken,
    TransferError,
)
from triptych.core.handoff import Endpoint
from triptych.core.ids import Handle, InstanceId

pytestmark = pytest.mark.usefixtures("no_leak")


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("way", EVERYWHERE)
async def test_blocks_and_tail_arrive_as_they_are_appended(way, digest):
    config = msgspec.structs.replace(CALM, digest=digest)
    async with pair(way, config) as both:
        offer = both.offer()
        seen = []
        fetching = asyncio.create_task(both.fetch(5, [30, 2, 3, 4, 17], seen=seen))
        offer.append([7, 8])
        async with asyncio.timeout(PATIENCE_S):
            while not seen:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert seen == [2]
        assert both.released == {"h": []}
        offer.append([0, 32])
        offer.append([9])
        offer.finish(b"the first token")
        assert await fetching == b"the first token"
        both.assert_equal([7, 8, 0, 32, 9], [30, 2, 3, 4, 17])
        assert seen[-1] == 5
        assert seen == sorted(seen)
        await both.assert_idle()
        assert both.released == {"h": [Release.TAKEN.value]}


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_many_random_transfers_at_once_over_pooled_connections(way):
    rng = random.Random(way)
    async with pair(way, source=Store(259).fill(3), target=Store(300).fill(4)) as both:
        free = list(range(300))
        rng.shuffle(free)

        async def one(number: int) -> None:
            theirs = rng.sample(range(259), rng.choice([1, 2, 7, 17]))
            first = rng.randrange(len(theirs))
            ours = [free.pop() for _ in theirs[first:]]
            handle = f"h{number}"
            fetching = both.fetch(len(theirs), ours, first=first, handle=handle)
            task = asyncio.create_task(fetching)
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.05)
            offer = both.offer(handle)
            at = 0
            while at < len(theirs):
                step = rng.randint(1, 5)
                offer.append(theirs[at : at + step])
                at += step
                await asyncio.sleep(rng.random() * 0.01)
            offer.finish(handle.encode())
            assert await task == handle.encode()
            both.assert_equal(theirs[first:], ours)
            free.extend(ours)
            assert both.released[handle] == ["taken"]

        for round_ in range(3):
            await asyncio.gather(*(one(round_ * 100 + number) for number in range(12)))
        await both.assert_idle()
        assert len(both.receiver._idle) <= 12
        before = open_fds()
        for number in range(50):
            await one(1000 + number)
        assert open_fds() <= before


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("way", EVERYWHERE)
async def test_stores_without_descriptor_go_in_the_stream(way, plain):
    async with pair(way, source=Store(plain=True).fill(5), target=Store(plain=plain)) as both:
        offer = both.offer()
        offer.append([3, 1, 2])
        offer.finish()
        assert await both.fetch(3, [9, 8, 7]) == b""
        both.assert_equal([3, 1, 2], [9, 8, 7])


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_large_blocks_and_more_small_ones_than_one_chunk_holds(way):
    for width, num_blocks in ((40_000, 5), (1, 1300)):
        of = layout(width)
        source, target = Store(num_blocks, of).fill(6), Store(num_blocks, of)
        async with pair(way, source=source, target=target) as both:
            order = random.Random(7).sample(range(num_blocks), num_blocks)
            offer = both.offer()
            offer.append(order)
            offer.finish()
            await both.fetch(num_blocks, range(num_blocks))
            both.assert_equal(order, range(num_blocks))


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_two_stores_over_one_connection(way):
    async with pair(way) as both:
        wide = layout(11)
        other, mine = Store(9, wide).fill(8), Store(9, wide)
        for turn in range(2):
            offer = both.offer(f"a{turn}")
            offer.append([1])
            offer.finish()
            await both.fetch(1, [turn], handle=f"a{turn}")
            both.assert_equal([1], [turn])
            second = both.outbox.offer(Handle(f"b{turn}"), 0, other, "job", lambda _: None)
            second.append([turn + 3])
            second.finish()
            ref = ref_to("giver@0", both.endpoint, 1, wide, f"b{turn}")
            deadline = MonotonicClock().now() + PATIENCE_S
            await both.receiver.fetch(ref, mine, [0], 0, lambda _: None, deadline)
            assert mine.block(0) == other.block(turn + 3)
        assert len(both.receiver._idle) == 1
        other.close()
        mine.close()


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_no_blocks_wanted_still_waits_for_the_tail(way):
    async with pair(way) as both:
        fetching = asyncio.create_task(both.fetch(3, [], first=3))
        await asyncio.sleep(0.1)
        offer = both.offer()
        offer.append([0, 1])
        await asyncio.sleep(0.1)
        assert not fetching.done()
        offer.append([2])
        offer.finish(b"tail")
        assert await fetching == b"tail"
        assert both.released == {"h": ["taken"]}


@pytest.mark.parametrize("way", BETWEEN_PROCESSES)
async def test_a_wait_longer_than_the_timeout_is_bridged_by_heartbeats(way):
    config = msgspec.structs.replace(CALM, timeout_s=2.0)
    async with pair(way, config) as both:
        fetching = asyncio.create_task(both.fetch(1, [5]))
        await asyncio.sleep(1.1 * config.timeout_s)
        offer = both.offer()
        await asyncio.sleep(1.1 * config.timeout_s)
        offer.append([6])
        offer.finish()
        await fetching
        both.assert_equal([6], [5])


# -- what is refused


@pytest.mark.parametrize("way", BETWEEN_PROCESSES)
async def test_a_giver_that_stops_does_not_wait_for_who_keeps_the_connection(way):
    """The taker does not read from it before it fetches again, so nobody would hear a word."""
    patient = msgspec.structs.replace(CALM, timeout_s=2 * PATIENCE_S)
    async with pair(way, patient) as both:
        offer = both.offer()
        offer.append([1])
        offer.finish(b"")
        await both.fetch(1, [1])
        async with asyncio.timeout(PATIENCE_S):
            await both.outbox.close()
        with pytest.raises(InstanceLost):
            await both.fetch(1, [1], handle="again")


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_a_handle_serves_one_fetch(way):
    async with pair(way) as both:
        offer = both.offer()
        first = asyncio.create_task(both.fetch(1, [5]))
        await asyncio.sleep(0.1)
        with pytest.raises(TransferError, match="another"):
            await both.fetch(1, [6])
        offer.append([6])
        offer.finish()
        await first
        with pytest.raises(TransferError, match="already"):
            await both.fetch(1, [6])
        await both.assert_idle()


async def test_two_takers_of_a_handle_that_is_not_offered_yet():
    async with pair() as both:
        first = asyncio.create_task(both.fetch(1, [5]))
        await asyncio.sleep(0.1)
        with pytest.raises(TransferError, match="another"):
            await both.fetch(1, [6])
        offer = both.offer()
        offer.append([1])
        offer.finish()
        await first


async def test_another_layout_is_refused_before_a_byte_is_written():
    async with pair(target=Store(33, layout(model="other"))) as both:
        before = bytes(both.target.view)
        both.offer().append([0])
        with pytest.raises(TransferError, match="layout"):
            await both.fetch(1, [0])
        both.offer("next").append([0])
        ref = ref_to("giver@0", both.endpoint, 1, both.target.layout, "next")
        deadline = MonotonicClock().now() + PATIENCE_S
        with pytest.raises(TransferError, match="layout"):
            await both.receiver.fetch(ref, both.target, [0], 0, lambda _: None, deadline)
        assert bytes(both.target.view) == before
        assert both.released["next"] == [], "a wrong promise does not use the offer up"


async def test_layers_arrive_before_the_blocks_do():
    async with pair() as both:
        offer, seen = both.offer(), []
        fetching = asyncio.create_task(both.fetch(3, [9, 8, 1], seen=seen))
        offer.append([5, 6], 1)
        layer = both.source.layout.block_bytes // 2
        async with asyncio.timeout(PATIENCE_S):
            while both.target.block(8)[:layer] != both.source.block(6)[:layer]:
                await asyncio.sleep(0.005)
        assert both.target.block(8)[layer:] != both.source.block(6)[layer:]
        assert set(seen) <= {0}
        with pytest.raises(InvariantBroken, match="turn"):
            offer.append([7])
        offer.append([5, 6])
        offer.append([7])
        offer.finish(b"tail")
        assert await fetching == b"tail"
        both.assert_equal([5, 6, 7], [9, 8, 1])
        assert seen[-1] == 3


async def test_another_epoch_is_refused():
    async with pair() as both:
        both.offer(epoch=1)
        with pytest.raises(TransferError, match="epoch"):
            await both.fetch(1, [0])


@pytest.mark.parametrize("made", [1, 3])
async def test_more_or_fewer_blocks_than_promised(made):
    async with pair() as both:
        offer = both.offer()
        offer.append(range(made))
        offer.finish()
        with pytest.raises(TransferError):
            await both.fetch(2, [0, 1])
        await both.assert_idle()
        assert both.released["h"] in (["failed"], ["taker_lost"])


async def test_blocks_out_of_range_are_a_bug_of_the_caller():
    async with pair() as both:
        with pytest.raises(InvariantBroken):
            await both.fetch(1, [33])
        with pytest.raises(InvariantBroken):
            both.offer().append([33])


@pytest.mark.parametrize("way", BETWEEN_PROCESSES)
async def test_a_wrong_secret_is_dropped_before_anything(way):
    async with pair(way, secret=b"another") as both:
        offer = both.offer()
        offer.append([0])
        offer.finish()
        with pytest.raises(InstanceLost):
            await both.fetch(1, [0])
        assert both.outbox.census()[0].kind == "lease"
        assert both.released == {"h": []}
        async with asyncio.timeout(PATIENCE_S):
            while both.outbox._conversations:
                await asyncio.sleep(0.01)


async def test_another_incarnation_at_the_same_address_is_not_the_one_promised():
    async with pair("tcp") as both:
        ref = ref_to("giver@1", both.endpoint, 1, both.source.layout)
        with pytest.raises(InstanceLost, match="answers in place"):
            deadline = MonotonicClock().now() + PATIENCE_S
            await both.receiver.fetch(ref, both.target, [0], 0, lambda _: None, deadline)


async def test_nothing_is_kept_of_an_incarnation_once_the_next_one_answers():
    async with pair("tcp") as both:
        loop = asyncio.get_running_loop()
        later = build_outbox(
            InstanceId("giver@1"), QUICK, SECRET, MonotonicClock(), loop.call_soon_threadsafe
        )
        endpoint = only(later.start(), "tcp")
        try:
            for outbox, where in ((both.outbox, both.endpoint), (later, endpoint)):
                offer = outbox.offer(Handle("n"), 0, both.source, "job", lambda _: None)
                offer.append([1])
                offer.finish()
                ref = ref_to(outbox.instance, where, 1, both.source.layout, "n")
                until_s = MonotonicClock().now() + PATIENCE_S
                await both.receiver.fetch(ref, both.target, [0], 0, lambda _: None, until_s)
                assert list(both.receiver._windows) == [outbox.instance]
                assert {report.giver for report in both.receiver.links()} == {outbox.instance}
                assert {link.peer for link in both.receiver._idle} == {outbox.instance}
        finally:
            await later.close()


async def test_nobody_listens():
    async with pair() as both:
        gone = Endpoint(host="127.0.0.1", port=1, path="nobody", machine=both.endpoint.machine)
        both.endpoint = gone
        with pytest.raises(InstanceLost, match="refused"):
            await both.fetch(1, [0])
        both.endpoint = Endpoint()
        with pytest.raises(InstanceLost, match="no way"):
            await both.fetch(1, [0])


async def test_a_machine_that_is_the_same_but_not_its_sockets_falls_back_to_tcp():
    async with pair("auto") as both:
        far = msgspec.structs.replace(both.endpoint, path="in-another-namespace")
        both.endpoint = far
        offer = both.offer()
        offer.append([4])
        offer.finish()
        await both.fetch(1, [3])
        both.assert_equal([4], [3])


async def test_the_configured_transport_is_the_only_one():
    config = msgspec.structs.replace(CALM, transport="tcp")
    async with pair("shm", config) as both:
        with pytest.raises(InstanceLost, match="no way"):
            await both.fetch(1, [0])
        assert InstanceId("giver@0") == both.outbox.instance
