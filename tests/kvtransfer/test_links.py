"""Many fetches on one link: credits bound and order it, and a way that breaks is replaced."""

import asyncio
import threading
import time

import msgspec
import pytest

from kvtransfer.channel import Channel
from kvtransfer.manifest import Abort, Chunk, Credit, Fetch, Finish, Manifest, Ready, Wait
from kvtransfer.routes import Measured
from kvtransfer.transports.nixl_agent import is_installed
from kvtransfer.transports.process_group import Pair
from kvtransfer.transports.transport import Parted, WayBroken
from tests.kvtransfer.faults import Faulty
from tests.kvtransfer.stores import CALM, SECRET, Store, by, layout, pair
from tests.patience import PATIENCE_S
from triptych.core.clock import MonotonicClock
from triptych.core.errors import InstanceLost, TransferError

pytestmark = pytest.mark.usefixtures("no_leak")
WIDE = layout(10_000)
"""Blocks of 640 kB: each a chunk that needs a credit."""


def stores(num_blocks: int = 40):
    return {"source": Store(num_blocks, WIDE).fill(1), "target": Store(num_blocks, WIDE)}


@pytest.mark.parametrize("way", ["inproc", "shm", "tcp"])
async def test_the_earlier_deadline_finishes_first_although_it_came_later(way):
    config = msgspec.structs.replace(CALM, credits=2)
    are_both_there = threading.Event()

    def slowly(source, theirs, targets) -> None:
        are_both_there.wait()
        time.sleep(0.01)
        source.read(theirs, targets)

    wrap = lambda inner: Faulty(inner, slowly)  # noqa: E731
    async with pair(way, config, wrap=wrap, **stores()) as both:
        order = []

        async def one(handle: str, first: int, limit_s: float) -> None:
            offer = both.offer(handle)
            offer.append(range(first, first + 20))
            offer.finish()
            blocks = range(first, first + 20)
            await both.fetch(20, blocks, handle=handle, limit_s=limit_s)
            order.append(handle)

        late = asyncio.create_task(one("late", 0, 2 * PATIENCE_S))
        await asyncio.sleep(0.05)
        soon = asyncio.create_task(one("soon", 20, PATIENCE_S))
        await asyncio.sleep(0.05)
        are_both_there.set()
        await asyncio.gather(late, soon)
        assert order == ["soon", "late"]
        both.assert_equal(range(40), range(40))
        await both.assert_idle()
        assert [window.num_free for window in both.receiver._windows.values()] == [2]


async def test_a_fetch_that_waits_for_its_producer_keeps_nobody_from_the_link():
    config = msgspec.structs.replace(CALM, credits=2)
    async with pair("shm", config, **stores()) as both:
        waiting = []
        for number in range(6):
            both.offer(f"w{number}").append([number])
            fetch = both.fetch(2, [number, 39 - number], handle=f"w{number}", limit_s=PATIENCE_S)
            waiting.append(asyncio.create_task(fetch))
        await asyncio.sleep(0.2)
        offer = both.offer("whole")
        offer.append(range(10, 20))
        offer.finish()
        async with asyncio.timeout(PATIENCE_S / 2):
            await both.fetch(10, range(10, 20), handle="whole", limit_s=2 * PATIENCE_S)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await both.assert_idle()


async def test_a_stalled_taker_bounds_what_is_on_its_way():
    """It answers heartbeats, so it lives; but it gives no credit."""
    config = msgspec.structs.replace(CALM, timeout_s=2.0)
    async with pair("shm", config, **stores()) as both:
        offer = both.offer()
        offer.append(range(20))
        offer.finish()
        chunks = []

        def take() -> None:
            channel = Channel(both.outbox.connect(), MonotonicClock(), PATIENCE_S)
            try:
                channel.greet(SECRET, "taker@0")
                print_ = both.source.layout.fingerprint
                channel.send(Fetch("h", 0, print_, 0, 80, "inproc"))
                while True:
                    message, _ = channel.receive()
                    if isinstance(message, Ready) and not chunks:
                        assert message.num_ready == 20
                        channel.send(Credit(3, 0))
                    elif isinstance(message, Chunk):
                        chunks.append(message)
                    elif isinstance(message, Wait):
                        channel.send(Wait())
                    elif isinstance(message, Finish):
                        return
            except InstanceLost:
                return
            finally:
                channel.close()

        thread = threading.Thread(target=take)
        thread.start()
        await asyncio.sleep(1.2 * config.timeout_s)
        assert len(chunks) == 3
        assert [chunk.num_ready for chunk in chunks] == [19, 18, 17]
        assert both.released == {"h": []}
        await both.outbox.withdraw("h")
        await asyncio.to_thread(thread.join)


async def test_credits_that_come_with_a_fetch_are_used_or_given_back():
    """Two chunks come without asking; where nothing is offered yet, both credits return at once."""
    async with pair("shm", **stores()) as both:
        offer = both.offer()
        offer.append(range(20))
        offer.finish()
        print_ = both.source.layout.fingerprint
        heard: dict[str, list] = {"h": [], "later": []}

        def take(handle: str) -> None:
            channel = Channel(both.outbox.connect(), MonotonicClock(), PATIENCE_S)
            try:
                channel.greet(SECRET, "taker@0")
                size = 2 * both.source.layout.block_bytes
                channel.send(Fetch(handle, 0, print_, 0, 80, "inproc", "raw", size, 2))
                while not isinstance(message := channel.receive()[0], Wait):
                    heard[handle].append(message)
            finally:
                channel.close()

        await asyncio.gather(*(asyncio.to_thread(take, handle) for handle in heard))
        assert heard["later"] == [Ready(0, 2)]
        manifest, *chunks = heard["h"]
        assert isinstance(manifest, Manifest)
        assert [(chunk.num_blocks, chunk.num_ready) for chunk in chunks] == [(2, 9), (2, 8)]


class Breaking:
    """A way that carries some chunks, then breaks: of every connection, or only once."""

    def __init__(self, good: int) -> None:
        self.left = good

    def __call__(self, source, theirs, targets) -> None:
        self.left -= 1
        if self.left < 0:
            targets[0][:7] = b"garbage"
            raise WayBroken("it does not carry any more")
        source.read(theirs, targets)


@pytest.mark.parametrize("good", [0, 1, 5])
@pytest.mark.parametrize("layers", [True, False])
async def test_a_way_that_breaks_is_replaced_in_the_middle_of_a_transfer(good, layers):
    fault = Breaking(good)
    wrap = lambda inner: Faulty(inner, fault) if inner.name == "shm" else inner  # noqa: E731
    async with pair("auto", wrap=wrap, **stores()) as both:
        for turn in range(2):
            handle = f"h{turn}"
            offer, seen = both.offer(handle), []
            fetching = asyncio.create_task(both.fetch(7, range(7), handle=handle, seen=seen))
            if layers:
                offer.append([9, 8, 7], 1)
                await asyncio.sleep(0.05)
                offer.append([9, 8, 7])
            else:
                offer.append([9, 8, 7])
            await asyncio.sleep(0.05)
            offer.append([30, 1, 2, 3])
            offer.finish(b"tail")
            assert await fetching == b"tail"
            both.assert_equal([9, 8, 7, 30, 1, 2, 3], range(7))
            assert seen == sorted(seen)
            assert both.released[handle] == ["taken"]
            both.target.view[:] = bytes(len(both.target.view))
        links = {report.transport: report for report in both.receiver.links()}
        assert links.pop("shm").failovers == 1
        # tcp, or nixl where it was loaded by then.
        assert {report.failovers for report in links.values()} == {0}
        assert any(report.bytes_per_s > 0 for report in links.values())
        await both.assert_idle()


async def test_a_way_that_cannot_be_opened_is_replaced():
    class Closed(Faulty):
        def source(self, channel, announced, ref):
            raise WayBroken("no such device")

    wrap = lambda inner: Closed(inner, None) if inner.name == "shm" else inner  # noqa: E731
    async with pair("auto", wrap=wrap) as both:
        offer = both.offer()
        offer.append([4, 5])
        offer.finish()
        await both.fetch(2, [1, 2])
        both.assert_equal([4, 5], [1, 2])
        assert {r.transport: r.failovers for r in both.receiver.links()}["shm"] == 1


async def test_without_another_way_a_broken_one_is_an_error():
    wrap = lambda inner: Faulty(inner, Breaking(0))  # noqa: E731
    async with pair("shm", wrap=wrap) as both:
        offer = both.offer()
        offer.append([4])
        offer.finish()
        with pytest.raises(TransferError, match="carry"):
            await both.fetch(1, [1])
        await both.assert_idle()
        assert both.released == {"h": ["taker_lost"]}


async def test_every_transfer_measures_its_way():
    async with pair("shm", **stores()) as both:
        assert both.receiver.links() == []
        offer = both.offer()
        offer.append(range(9))
        offer.finish()
        await both.fetch(9, range(9))
        (report,) = both.receiver.links()
        assert (report.giver, report.transport, report.failovers) == ("giver@0", "shm", 0)
        assert report.latency_s > 0
        assert report.bytes_per_s > 0


def failovers(both):
    return {report.transport: report.failovers for report in both.receiver.links()}


@pytest.mark.skipif(not is_installed(), reason="nixl is not installed")
@pytest.mark.parametrize("side", ["giver", "taker"])
async def test_a_nixl_that_is_installed_but_does_not_start_is_replaced(side):
    bad = msgspec.structs.replace(CALM, nixl_backend="NOPE")
    configs = {"config": bad, "giver": CALM} if side == "taker" else {"giver": bad}
    async with pair("auto", **configs, **stores()) as both:
        both.endpoint = msgspec.structs.replace(both.endpoint, path="")
        for handle in "ab":
            offer = both.offer(handle)
            offer.append([4, 5])
            offer.finish(b"tail")
            assert await both.fetch(2, [1, 2], handle=handle) == b"tail"
            both.assert_equal([4, 5], [1, 2])
        assert failovers(both) == {"nixl": 1, "tcp": 0}
        speeds = {report.transport: report.bytes_per_s for report in both.receiver.links()}
        assert speeds["nixl"] == 0 < speeds["tcp"]
        await both.assert_idle()


@pytest.mark.parametrize("side", ["giver", "taker"])
async def test_a_process_group_that_cannot_be_made_is_replaced(side, monkeypatch):
    rank = {"giver": 0, "taker": 1}[side]
    make = Pair.__init__

    def failing(self, backend, exchange, own, timeout_s):
        make(self, "nobody" if own == rank else backend, exchange, own, timeout_s)

    monkeypatch.setattr(Pair, "__init__", failing)
    config = by("nccl")
    async with pair("auto", msgspec.structs.replace(config, transport="auto"), **stores()) as both:
        both.endpoint = msgspec.structs.replace(both.endpoint, path="", ways=("nccl",))
        both.receiver._routes.learn(both.outbox.instance, "nccl", Measured(1e-6, 1 << 20, 1e-6))
        offer = both.offer()
        offer.append([4, 5])
        offer.finish()
        await both.fetch(2, [1, 2])
        both.assert_equal([4, 5], [1, 2])
        assert failovers(both) == {"nccl": 1, "tcp": 0}
        await both.assert_idle()


async def test_what_the_giver_says_while_it_is_read_from_blames_no_way():
    def leave(_source, _theirs, _targets):
        raise Parted(Abort("data_loss", "the producer broke"))

    wrap = lambda inner: Faulty(inner, leave) if inner.name == "shm" else inner  # noqa: E731
    async with pair("auto", wrap=wrap, **stores()) as both:
        offer = both.offer()
        offer.append([1, 2])
        offer.finish()
        with pytest.raises(TransferError, match="the producer broke"):
            await both.fetch(2, [0, 1])
        assert not any(link.num_broken for link in both.receiver.links())


@pytest.mark.parametrize("good", [0, 1])
async def test_messages_of_the_next_way_have_the_size_of_that_way(good):
    """A quick way had large messages; the one in its place was never measured."""
    size = WIDE.block_bytes
    config = msgspec.structs.replace(CALM, message_bytes=size, max_message_bytes=4 * size)
    fault, sizes = Breaking(good), []
    wrap = lambda inner: Faulty(inner, fault) if inner.name == "shm" else inner  # noqa: E731
    async with pair("auto", config, wrap=wrap, **stores()) as both:
        giver = both.outbox.instance
        both.receiver._routes.learn(giver, "shm", Measured(1e-5, 1 << 30, 0.01))
        look = both.outbox.offers.look

        def seen(offer, wanted, max_bytes, allowance):
            sizes.append(max_bytes)
            return look(offer, wanted, max_bytes, allowance)

        both.outbox.offers.look = seen
        offer = both.offer()
        offer.append(range(20))
        offer.finish()
        await both.fetch(20, range(20))
        both.assert_equal(range(20), range(20))
        assert (sizes[0], sizes[-1]) == (4 * size, size)


async def test_what_is_converted_goes_in_small_messages_however_quick_the_link():
    config = msgspec.structs.replace(CALM, wire="int8", message_bytes=WIDE.block_bytes)
    asked = []
    async with pair("shm", config, **stores()) as both:
        both.receiver._routes.learn(both.outbox.instance, "shm", Measured(1e-5, 1 << 30, 0.01))
        claim = both.outbox.offers.claim

        def seen(fetch, taker, wake):
            asked.append(fetch.message_bytes)
            return claim(fetch, taker, wake)

        both.outbox.offers.claim = seen
        offer = both.offer()
        offer.append(range(4))
        offer.finish()
        await both.fetch(4, range(4))
        assert set(asked) == {WIDE.block_bytes}
