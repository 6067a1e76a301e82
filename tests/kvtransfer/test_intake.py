"""Embeddings of a request: all places first, nothing twice, nothing lost."""

import asyncio
import random
from contextlib import asynccontextmanager

import msgspec
import pytest

from kvtransfer.intake import Intake
from tests.kvtransfer.stores import CALM, Store, pair
from tests.patience import PATIENCE_S
from triptych.cache.embeddings import EmbeddingCache
from triptych.core.clock import MonotonicClock
from triptych.core.errors import DeadlineExceeded, RequestError, TransferError, Unavailable
from triptych.core.handoff import PromisedItem, TransferRef
from triptych.core.ids import ContentHash, Handle, InstanceId
from triptych.core.layout import Layout
from triptych.core.request import Item

LAYOUT = Layout("embedding", "m", "float32", (4, 7), 4)
pytestmark = pytest.mark.usefixtures("no_leak")


class Bench:
    """An encoder's outbox and store, and a prefill instance's intake."""

    def __init__(self, both, num_blocks: int, own: str) -> None:
        self.both = both
        self.clock = MonotonicClock()
        self.cache = EmbeddingCache(num_blocks, LAYOUT.block_size)
        self.intake = Intake(self.cache, both.target, both.receiver, InstanceId(own), self.clock)
        self.ready: list[int] = []
        self.entries = []

    def item(self, key: str, num_tokens: int = 7, handle: str = "", instance="giver@0"):
        return PromisedItem(
            Item(ContentHash(key.encode()), 0, num_tokens, (1, 2, 2)),
            TransferRef(
                Handle(handle or key),
                0,
                InstanceId(instance),
                self.both.endpoint,
                LAYOUT.fingerprint,
                num_tokens,
            ),
        )

    def encode(self, handle: str, blocks) -> None:
        offer = self.both.offer(handle)
        offer.append(blocks)
        offer.finish()

    def bring(self, *items, owner="job", limit_s=PATIENCE_S):
        told = []

        def on_ready(index, entry):
            assert entry.is_ready
            assert told == ["places"], "places come before what is in them, once"
            self.ready.append(index)
            self.entries.append(entry)

        def on_places():
            told.append("places")

        until = self.clock.now() + limit_s
        return asyncio.create_task(self.intake.bring(items, until, on_places, on_ready, owner))

    def release(self) -> None:
        while self.entries:
            self.cache.release(self.entries.pop())

    def assert_bytes(self, entry, theirs) -> None:
        self.both.assert_equal(theirs, entry.blocks)

    async def assert_idle(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.intake.census():
                await asyncio.sleep(0.01)
        await self.both.assert_idle()
        self.cache.check()
        totals = self.cache.totals()
        assert self.cache.holdings() == []
        free, cached = totals["embedding_block.free"], totals["embedding_block.cached"]
        assert free + cached == totals["embedding_block.total"]


@asynccontextmanager
async def bench(num_blocks=8, way="shm", own="taker@0", config=CALM):
    source, target = Store(33, LAYOUT).fill(1), Store(num_blocks, LAYOUT).fill(2)
    async with pair(way, config, source=source, target=target) as both:
        made = Bench(both, num_blocks, own)
        yield made
        made.release()
        await made.assert_idle()
        await made.intake.close()


async def test_items_become_ready_as_they_arrive():
    async with bench() as b:
        task = b.bring(b.item("a"), b.item("b", 4))
        b.encode("b", [9])
        async with asyncio.timeout(PATIENCE_S):
            while b.ready != [1]:
                await asyncio.sleep(0.005)
        assert not task.done()
        b.encode("a", [3, 4])
        await task
        assert b.ready == [1, 0]
        b.assert_bytes(b.entries[0], [9])
        b.assert_bytes(b.entries[1], [3, 4])
        assert b.both.released == {"a": ["taken"], "b": ["taken"]}


async def test_no_items_is_nothing():
    async with bench() as b:
        await b.bring()
        assert b.ready == []


async def test_what_is_cached_is_not_fetched_but_its_promise_is_consumed():
    async with bench() as b:
        b.encode("first", [3, 4])
        await b.bring(b.item("a", handle="first"))
        before = bytes(b.both.target.view)
        b.release()
        await b.bring(b.item("a", handle="second"))
        assert b.ready == [0, 0]
        assert [row.kind for row in b.intake.census()] == ["task"]
        b.both.source.fill(9)
        b.encode("second", [5, 6])
        await b.both.assert_idle()
        assert b.both.released["second"] == ["taken"]
        assert bytes(b.both.target.view) == before


async def test_two_requests_for_one_picture_fetch_it_once():
    async with bench() as b:
        first = b.bring(b.item("a", handle="first"))
        await asyncio.sleep(0.05)
        second = b.bring(b.item("a", handle="second"), owner="other")
        await asyncio.sleep(0.05)
        b.encode("second", [7, 8])
        await asyncio.sleep(0.1)
        assert not second.done(), "it waits for the fetch in flight"
        b.encode("first", [3, 4])
        await asyncio.gather(first, second)
        b.assert_bytes(b.entries[0], [3, 4])
        assert b.entries[0].blocks == b.entries[1].blocks


async def test_one_picture_twice_in_a_request():
    async with bench() as b:
        task = b.bring(b.item("a", handle="one"), b.item("a", handle="two"))
        b.encode("one", [3, 4])
        b.encode("two", [5, 6])
        await task
        assert sorted(b.ready) == [0, 1]
        assert b.entries[0].blocks == b.entries[1].blocks


@pytest.mark.parametrize("how", ["fail", "cancel", "corrupt"])
async def test_a_failed_fetch_is_taken_over_by_who_waits_for_it(how):
    async with bench() as b:
        first = b.bring(b.item("a", handle="first"), b.item("b"))
        await asyncio.sleep(0.05)
        second = b.bring(b.item("a", handle="second"))
        third = b.bring(b.item("a", handle="third"), owner="other")
        await asyncio.sleep(0.05)
        if how == "fail":
            b.both.outbox.refuse(Handle("first"), "unavailable", "gone")
        elif how == "cancel":
            first.cancel()
        else:
            b.encode("first", [1, 2, 3])  # one block too many
        with pytest.raises((Exception, asyncio.CancelledError)):
            await first
        b.both.outbox.refuse(Handle("b"), "cancelled", "not needed")
        await asyncio.sleep(0.05)
        assert (second.done(), third.done(), b.ready) == (False, False, [])
        b.encode("third", [7, 8])
        await asyncio.sleep(0.05)
        assert not third.done(), "it waits for the second, which fetches now"
        b.encode("second", [3, 4])
        await asyncio.gather(second, third)
        assert b.ready == [0, 0]
        for entry in b.entries:
            b.assert_bytes(entry, [3, 4])


async def test_what_fails_for_every_request_fails_each_with_its_own_error():
    async with bench() as b:
        tasks = [b.bring(b.item("a", handle=f"{number}")) for number in range(5)]
        await asyncio.sleep(0.05)
        for number in range(5):
            b.both.outbox.refuse(Handle(f"{number}"), "invalid_request", f"bad {number}")
        for number, task in enumerate(tasks):
            with pytest.raises(RequestError, match=f"bad {number}"):
                await task
        assert b.cache.totals()["embedding_block.free"] == 8


async def test_a_picture_that_its_encoder_gave_up_fails_who_waits_for_it():
    async with bench() as b:
        (encoder,) = b.cache.reserve_all([(ContentHash(b"a"), 7)], "encoder")
        task = b.bring(b.item("a"))
        await asyncio.sleep(0.05)
        b.cache.abort(encoder)
        with pytest.raises(TransferError, match="not encoded"):
            await task
        b.cache.release(encoder)


async def test_ready_items_stay_the_callers_when_another_fails():
    async with bench() as b:
        task = b.bring(b.item("a"), b.item("b"))
        b.encode("a", [3, 4])
        await asyncio.sleep(0.1)
        b.both.outbox.refuse(Handle("b"), "unavailable", "gone")
        with pytest.raises(Exception, match="gone"):
            await task
        assert b.ready == [0]
        assert [row.count for row in b.cache.holdings()] == [2]
        b.assert_bytes(b.entries[0], [3, 4])


async def test_room_is_given_in_order_and_to_all_items_or_none():
    async with bench(num_blocks=6) as b:
        first = b.bring(b.item("a"), b.item("b"))  # 4 of 6 blocks
        await asyncio.sleep(0.02)
        big = b.bring(b.item("c"), b.item("d"))  # 4 more: must wait, holding nothing
        await asyncio.sleep(0.02)
        small = b.bring(b.item("e", 4))  # would fit, but its turn comes later
        await asyncio.sleep(0.05)
        assert b.intake.num_waiting == 2
        assert sum(row.count for row in b.cache.holdings()) == 4
        for handle, blocks in (("a", [1, 2]), ("b", [3, 4])):
            b.encode(handle, blocks)
        await first
        assert b.intake.num_waiting == 2
        b.release()
        await asyncio.sleep(0.05)
        assert b.intake.num_waiting == 0
        for handle, blocks in (("c", [5, 6]), ("d", [7, 8]), ("e", [9])):
            b.encode(handle, blocks)
        await asyncio.gather(big, small)


async def test_waiting_for_room_ends_with_the_deadline_or_cancellation():
    async with bench(num_blocks=4) as b:
        first = b.bring(b.item("a"), b.item("b"))
        await asyncio.sleep(0.02)
        with pytest.raises(DeadlineExceeded, match="room"):
            await b.bring(b.item("c"), limit_s=0.1)
        waiting = b.bring(b.item("d"))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert b.intake.num_waiting == 0
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert b.cache.totals()["embedding_block.free"] == 4


async def test_what_never_fits_is_refused():
    async with bench(num_blocks=3) as b:
        with pytest.raises(RequestError):
            await b.bring(b.item("a"), b.item("b"))
        task = b.bring(b.item("a", handle="one"), b.item("a", handle="two"))  # one entry
        b.encode("one", [1, 2])
        b.encode("two", [1, 2])
        await task


async def test_cancelling_before_the_first_step_leaves_nothing():
    async with bench() as b:
        task = b.bring(b.item("a"), b.item("b"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert b.cache.holdings() == []


# -- the encoder is this very instance


@pytest.mark.parametrize("way", ["inproc", "shm"])
async def test_an_own_encoder_fills_the_entry_and_nothing_is_copied(way):
    async with bench(way=way, own="giver@0") as b:
        task = b.bring(b.item("a"))
        await asyncio.sleep(0.05)
        encoder = b.cache.acquire(ContentHash(b"a"), "encoder")
        assert b.cache.claim(encoder)
        before = bytes(b.both.target.view)
        b.cache.commit(encoder)
        offer = b.both.offer("a")
        offer.append([1, 2])
        offer.finish()
        await task
        assert bytes(b.both.target.view) == before
        assert b.entries[0].blocks == encoder.blocks
        assert b.both.released == {"a": ["taken"]}
        b.cache.release(encoder)


async def test_an_own_encoder_that_fails_fails_the_request():
    async with bench(own="giver@0") as b:
        task = b.bring(b.item("a"))
        await asyncio.sleep(0.05)
        b.both.outbox.refuse(Handle("a"), "invalid_request", "not a picture")
        with pytest.raises(RequestError, match="not a picture"):
            await task


async def test_an_own_encoder_that_made_nothing_is_found_out():
    async with bench(own="giver@0") as b:
        b.encode("a", [1, 2])
        with pytest.raises(TransferError, match="not made"):
            await b.bring(b.item("a"))


async def test_a_picture_left_to_the_own_encoder_is_taken_over_by_a_fetch():
    async with bench(own="giver@0") as b:
        own = b.bring(b.item("a", handle="own"))
        await asyncio.sleep(0.02)
        far = b.item("a", handle="far", instance="giver@0")
        b.intake._instance = InstanceId("somebody")  # the second promise is another instance's
        other = b.bring(far)
        await asyncio.sleep(0.02)
        b.encode("far", [3, 4])
        await other
        b.assert_bytes(b.entries[0], [3, 4])
        b.encode("own", [0, 0])
        await own
        assert b.entries[1].blocks == b.entries[0].blocks


async def test_random_requests_under_pressure():
    """Few blocks, many requests, cancels and failures: nothing is lost, nothing hangs."""
    rng = random.Random(11)
    async with bench(num_blocks=9) as b:
        counts = {"ok": 0, "failed": 0, "cancelled": 0}

        async def one(number: int) -> None:
            keys = rng.sample("abcdefg", rng.randint(1, 4))
            items = [b.item(key, handle=f"{number}{key}") for key in keys]
            held = []
            until = b.clock.now() + PATIENCE_S
            work = b.intake.bring(
                items, until, int, lambda _, entry: held.append(entry), f"{number}"
            )
            task = asyncio.create_task(work)
            await asyncio.sleep(rng.random() * 0.05)
            for key, item in zip(keys, items, strict=True):
                if rng.random() < 0.1:
                    b.both.outbox.refuse(item.ref.handle, "unavailable", "gone")
                else:
                    b.encode(item.ref.handle, [ord(key) % 30, ord(key) % 30 + 1])
            if rng.random() < 0.15:
                task.cancel()
            try:
                await task
                counts["ok"] += 1
                for entry in held:
                    first = entry.key[0] % 30
                    b.assert_bytes(entry, [first, first + 1])
            except asyncio.CancelledError:
                counts["cancelled"] += 1
            except (TransferError, Unavailable):
                counts["failed"] += 1
            finally:
                for entry in held:
                    b.cache.release(entry)
                for item in items:
                    await b.both.outbox.withdraw(item.ref.handle)
            b.cache.check()

        for round_ in range(6):
            await asyncio.gather(*(one(round_ * 100 + number) for number in range(15)))
        assert sum(counts.values()) == 90
        assert min(counts.values()) > 3, counts


class Tier:
    """A tier below the cache. What ``has`` is said of may be gone when it is asked for."""

    def __init__(self, both, has=(), *, gives=True) -> None:
        self.both = both
        self.keys = [ContentHash(key.encode()) for key in has]
        self.gives = gives
        self.asked: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def covered(self, keys) -> int:
        return next((at for at, key in enumerate(keys) if key not in self.keys), len(keys))

    async def fill(self, entries) -> int:
        ((key, blocks),) = entries
        self.asked.append(key)
        await self.gate.wait()
        for block in blocks:
            self.both.target.block(block)[:] = self.both.source.block(20)
        return int(self.gives)


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_lower_tier_saves_the_fetch_and_the_promise_is_consumed(is_there: bool):
    async with bench() as b:
        tier = b.intake._below = Tier(b.both, gives=is_there)
        task = b.bring(b.item("a"))
        if is_there:
            await task
            assert not b.both.released  # nothing was waited for
        b.encode("a", [3, 4])
        await task
        assert tier.asked == [b"a"]
        b.assert_bytes(b.entries[0], [20, 20] if is_there else [3, 4])
        b.release()
        await b.assert_idle()
        assert b.both.released == {"a": ["taken"]}


async def test_a_cancelled_recall_leaves_the_entry_to_others():
    async with bench() as b:
        tier = b.intake._below = Tier(b.both)
        tier.gate.clear()
        first = b.bring(b.item("a"))
        while not tier.asked:
            await asyncio.sleep(0)
        second = b.bring(b.item("a", handle="again"))
        await asyncio.sleep(0)
        b.intake._below = None
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        b.encode("again", [5, 6])
        await second
        b.assert_bytes(b.entries[0], [5, 6])


def unpromised(item: PromisedItem) -> PromisedItem:
    return msgspec.structs.replace(item, ref=None)


@pytest.mark.parametrize("gives", [True, False])
async def test_what_nobody_promised_comes_from_a_tier_or_is_absent(gives: bool):
    """Two requests ask the tier once if it gives; what it has lost meanwhile is absent for both."""
    async with bench() as b:
        tier = b.intake._below = Tier(b.both, "a", gives=gives)
        tier.gate.clear()
        found = []

        def ask():
            items = [unpromised(b.item("a")), unpromised(b.item("nowhere"))]
            told = lambda index, entry: found.append((index, entry))  # noqa: E731
            until = b.clock.now() + PATIENCE_S
            return asyncio.create_task(b.intake.bring(items, until, lambda: None, told, "job"))

        tasks = [ask(), ask()]
        await asyncio.sleep(0.02)
        assert found == [(1, None)] * 2
        tier.gate.set()
        await asyncio.gather(*tasks)
        entries = [entry for index, entry in found if index == 0]
        assert tier.asked == [b"a"] if gives else [b"a", b"a"]
        if gives:
            b.assert_bytes(entries[0], [20, 20])
            b.entries = entries
            b.release()
        else:
            assert entries == [None, None]
        await b.assert_idle()


async def test_a_tier_does_not_make_a_request_too_large():
    """Two blocks each: three of them do not fit into five, so the unpromised one stays away."""
    async with bench(num_blocks=5) as b:
        b.intake._below = Tier(b.both, "c")
        for key, blocks in (("a", [1, 2]), ("b", [3, 4])):
            b.encode(key, blocks)
        absent = []
        items = [b.item("a"), b.item("b"), unpromised(b.item("c"))]

        def told(index, entry):
            (absent if entry is None else b.entries).append(entry)

        await b.intake.bring(items, b.clock.now() + PATIENCE_S, lambda: None, told, "job")
        assert (len(b.entries), absent) == (2, [None])
        b.release()
        await b.assert_idle()
