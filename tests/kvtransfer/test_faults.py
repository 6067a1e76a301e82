"""Whatever goes wrong on the way is noticed, always, and nothing is left behind."""

import asyncio
import random
import threading

import msgspec
import pytest

from tests.kvtransfer import faults
from tests.kvtransfer.faults import Faulty, Slow, relay
from tests.kvtransfer.stores import CALM, EVERYWHERE, Store, layout, pair
from triptych.core.errors import InstanceLost, TransferError

RETRYABLE = (TransferError, InstanceLost)
HASTY = msgspec.structs.replace(CALM, timeout_s=0.5)
"""Where what is lost is noticed by silence only."""
pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.mark.parametrize("fault", ["corrupt", "truncate", "swap", "replay", "fail"])
@pytest.mark.parametrize("way", EVERYWHERE)
async def test_a_damaged_chunk_never_counts(way, fault):
    caught, seeds = 0, range(12 if way in ("inproc", "shm", "tcp") else 4)  # others start slowly
    for seed in seeds:
        made = getattr(faults, fault)(seed)
        async with pair(way, wrap=lambda inner, made=made: Faulty(inner, made)) as both:
            offer, seen = both.offer(), []
            fetching = asyncio.create_task(both.fetch(7, [1, 2, 3, 11, 20, 21, 5], seen=seen))
            offer.append([4, 5, 6, 7])
            while not seen and not fetching.done():  # two chunks, not one of all blocks
                await asyncio.sleep(0.001)
            offer.append([30, 2, 9])
            offer.finish(b"tail")
            with pytest.raises(RETRYABLE):
                await fetching
            caught += 1
            await both.assert_idle()
            assert both.released == {"h": ["taker_lost"]}
            assert both.receiver._idle == []
    assert caught == len(seeds)


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_without_digests_a_damaged_chunk_is_believed(way):
    """The control of the test above: it is the digest that notices."""
    config = msgspec.structs.replace(CALM, digest=False)
    made = faults.corrupt(0)
    async with pair(way, config, wrap=lambda inner: Faulty(inner, made)) as both:
        offer = both.offer()
        offer.append([1])
        offer.finish()
        await both.fetch(1, [1])
        assert both.source.block(1) != both.target.block(1)


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_no_write_happens_after_a_cancelled_fetch_has_ended(way):
    """N8: the blocks belong to somebody else the moment ``fetch`` has raised."""
    for hits in range(1, 4):
        slow = Slow()
        async with pair(way, wrap=lambda inner, slow=slow: Faulty(inner, slow)) as both:
            offer = both.offer()
            offer.append([1, 5, 9])
            fetching = asyncio.create_task(both.fetch(3, [2, 8, 4]))
            await asyncio.to_thread(slow.is_writing.wait)
            for _ in range(hits):  # however often it is asked to hurry
                fetching.cancel()
                await asyncio.sleep(0.01)
            assert not fetching.done(), "it must wait for its thread"
            with pytest.raises(asyncio.CancelledError):
                await fetching
            writes, before = slow.num_writes, bytes(both.target.view)
            both.target.view[:] = bytes(len(before))
            await asyncio.sleep(0.1)
            assert slow.num_writes == writes
            assert not any(both.target.view)
            await both.assert_idle()


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_no_write_happens_after_the_deadline_or_the_end_of_the_receiver(way):
    slow = Slow()
    async with pair(way, wrap=lambda inner: Faulty(inner, slow)) as both:
        slow.num_turns = 2  # even, so that it is right in the end
        warm = both.offer("warm")  # a way may load its library with its first bytes
        warm.append([1])
        warm.finish()
        await both.fetch(1, [1], handle="warm")
        slow.is_writing.clear()
        slow.num_turns = 300
        both.offer().append([1])
        fetching = asyncio.create_task(both.fetch(2, [2, 3], limit_s=1.0))
        await asyncio.to_thread(slow.is_writing.wait)
        with pytest.raises(Exception, match="too long"):
            await fetching
        writes = slow.num_writes
        await asyncio.sleep(0.05)
        assert slow.num_writes == writes
        slow.is_writing.clear()
        both.offer("next").append([1])
        fetching = asyncio.create_task(both.fetch(2, [2, 3], handle="next"))
        await asyncio.to_thread(slow.is_writing.wait)
        await both.receiver.close()
        writes = slow.num_writes
        await asyncio.sleep(0.05)
        assert slow.num_writes == writes
        assert fetching.done()
        fetching.exception()


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_a_taker_that_is_slow_but_alive_is_waited_for(way):
    """The giver has said everything and the copying takes longer than the timeout."""
    config = msgspec.structs.replace(CALM, timeout_s=3.0, lease_s=3.0)
    of = layout(10_000)  # large enough for a chunk each
    source, target = Store(9, of).fill(1), Store(9, of)
    slow = Slow(80)  # 0.4 s a chunk
    wrap = lambda inner: Faulty(inner, slow)  # noqa: E731
    async with pair(way, config, source=source, target=target, wrap=wrap) as both:
        offer = both.offer()
        offer.append(range(9))
        offer.finish()
        await both.fetch(9, range(9))
        both.assert_equal(range(9), range(9))
        assert slow.num_writes == 9 * 80


# -- a stream that is damaged: every byte of it is covered


async def transfer(both, endpoint, handle) -> None:
    both.endpoint = endpoint
    offer = both.offer(handle)
    offer.append([3, 4, 9])
    offer.finish(b"tail")
    await both.fetch(3, [1, 2, 7], handle=handle)


async def frames_of_one_transfer(both) -> tuple[list[int], list[int]]:
    """Lengths of the frames from and to the giver."""
    down: list[int] = []
    up: list[int] = []

    def note(lengths):
        def mangle(_, frame):
            lengths.append(len(frame))
            return [frame]

        return mangle

    async with relay(both.endpoint, note(down), note(up)) as endpoint:
        direct, both.endpoint = both.endpoint, endpoint
        await transfer(both, endpoint, "whole")
        both.endpoint = direct
        for link in both.receiver._idle:
            link.close()
        both.receiver._idle.clear()
    both.assert_equal([3, 4, 9], [1, 2, 7])
    return down, up


def flip(frame: int, byte: int, bit: int):
    def mangle(number, data):
        if number != frame:
            return [data]
        damaged = bytearray(data)
        damaged[byte] ^= 1 << bit
        return [bytes(damaged)]

    return mangle


def straight(_, data):
    return [data]


@pytest.mark.parametrize("towards", ["taker", "giver"])
async def test_every_flipped_bit_in_the_stream_is_noticed(towards):
    rng = random.Random(towards)
    async with pair("tcp") as both:
        down, up = await frames_of_one_transfer(both)
    async with pair("tcp", HASTY) as both:
        direct = both.endpoint
        assert len(down) == 6, "Welcome, Manifest, Chunk, Data, Finish, Acked"
        assert len(up) == 3, "Hello, Fetch, Ack"
        lengths = down if towards == "taker" else up
        places = [(frame, byte) for frame, n in enumerate(lengths) for byte in range(min(n, 36))]
        places += [(frame, rng.randrange(36, n)) for frame, n in enumerate(lengths) for _ in "1234"]
        noticed = 0
        for index, (frame, byte) in enumerate(rng.sample(places, 60)):
            damage = flip(frame, byte, rng.randrange(8))
            ways = (damage, straight) if towards == "taker" else (straight, damage)
            async with relay(direct, *ways) as endpoint:
                with pytest.raises(RETRYABLE):
                    await transfer(both, endpoint, f"h{index}")
            noticed += 1
            both.outbox.refuse(f"h{index}", "cancelled", "next")
            await both.assert_idle()
        assert noticed == 60


@pytest.mark.parametrize("towards", ["taker", "giver"])
@pytest.mark.parametrize("what", ["drop", "repeat", "swap", "cut", "late", "half"])
async def test_frames_that_are_lost_repeated_or_out_of_order(what, towards):
    async with pair("tcp") as both:
        down, up = await frames_of_one_transfer(both)
    async with pair("tcp", CALM if what in ("late", "repeat") else HASTY) as both:
        direct = both.endpoint
        lengths = down if towards == "taker" else up
        for frame in range(len(lengths)):
            held: list[bytes] = []

            def damage(number, data, frame=frame, held=held):
                if what == "late":
                    return [data]
                if what == "swap" and held:
                    return [data, held.pop()]
                if number != frame:
                    return [data]
                if what == "swap":
                    held.append(data)
                    return []
                cases = {"drop": [], "repeat": [data, data], "cut": None, "half": [data[:20]]}
                return cases[what]

            ways = (damage, straight) if towards == "taker" else (straight, damage)
            async with relay(direct, *ways) as endpoint:
                handle = f"h{frame}"
                is_last = frame == len(lengths) - 1
                # A repeated last frame comes behind everything that counts. It spoils the pooled
                # connection, which is thrown away unused.
                if what == "late" or (what == "repeat" and is_last):
                    await transfer(both, endpoint, handle)
                else:
                    with pytest.raises(RETRYABLE):
                        await transfer(both, endpoint, handle)
                for link in both.receiver._idle:
                    link.close()
                both.receiver._idle.clear()
            both.outbox.refuse(handle, "cancelled", "next")
            await both.assert_idle()


async def test_a_repeated_last_frame_spoils_only_the_pooled_connection():
    async with pair("tcp") as both:
        async with relay(both.endpoint, lambda n, data: [data] * (2 if n == 5 else 1)) as endpoint:
            await transfer(both, endpoint, "a")
            await asyncio.sleep(0.05)
            await transfer(both, endpoint, "b")
            both.assert_equal([3, 4, 9], [1, 2, 7])
            await both.assert_idle()


@pytest.mark.parametrize("way", ["shm", "tcp", "inproc"])
async def test_an_outbox_without_threads_refuses_and_goes_on_listening(way, monkeypatch):
    start, refused = threading.Thread.start, []

    def none_left(thread: threading.Thread) -> None:
        if thread.name.endswith("giver") and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    async with pair(way) as both:
        offer = both.offer()
        offer.append([1, 2])
        offer.finish()
        with pytest.raises(RETRYABLE):
            await both.fetch(2, [0, 1])
        assert refused
        await both.fetch(2, [0, 1])
        assert both.released == {"h": ["taken"]}
        await both.assert_idle()
