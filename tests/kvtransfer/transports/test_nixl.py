"""The way through NIXL, between two real processes, over shared memory and over UCX's TCP."""

import random
import signal
import threading
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.transports import nixl_source
from kvtransfer.transports.nixl import Nixl
from kvtransfer.transports.nixl_agent import NixlAgent, Region, is_installed
from kvtransfer.transports.nixl_source import POST_BYTES, Attached, _portions
from kvtransfer.transports.transport import Extent, WayBroken
from tests.kvtransfer.stores import CALM, QUICK
from tests.kvtransfer.transports.owners import (
    SIZE,
    Waiting,
    drawn,
    joined,
    owner,
    store,
    views,
)
from tests.patience import PATIENCE_S
from tests.signals import stop
from triptych.core.clock import MonotonicClock
from triptych.core.errors import Cancelled, DeadlineExceeded, InstanceLost, TransferError

pytestmark = [
    pytest.mark.skipif(not is_installed(), reason="nixl is not installed (extra: nixl)"),
    pytest.mark.usefixtures("no_leak"),
]
WHOLE = [Extent(0, SIZE)]


@pytest.fixture(params=["cma", "tcp"])
def ucx(request, monkeypatch):
    """Which transport UCX uses, here and in processes that are started."""
    if request.param == "tcp":
        monkeypatch.setenv("UCX_TLS", "tcp")
    return request.param


@pytest.fixture
def tcp(monkeypatch):
    monkeypatch.setenv("UCX_TLS", "tcp")


@pytest.fixture
def taker():
    made = Nixl("taker@0", CALM, MonotonicClock())
    yield made
    made.close()


@pytest.fixture
def hasty():
    made = Nixl("taker@0", QUICK, MonotonicClock())
    yield made
    made.close()


def agent(taker) -> NixlAgent:
    with taker._readers.reading() as found:
        return found


@pytest.mark.usefixtures("ucx")
def test_bytes_arrive_however_both_sides_are_cut(taker):
    rng, expected, target = random.Random(5), store(1), store()
    num_threads = threading.active_count()
    with owner("nixl") as giver:
        source = giver.source(taker)
        for _ in range(12):
            theirs, ours = drawn(rng)
            source.read(theirs, views(target, ours))
            assert joined(target, ours) == joined(expected, theirs)
        assert agent(taker).num_registered == 1, "the taker's store is registered once"
        assert giver.num_threads == 1
        assert threading.active_count() <= num_threads, "nothing runs that spins"
        source.close()
    for each in (expected, target):
        each.close()


@pytest.mark.usefixtures("ucx")
def test_a_read_larger_than_one_post(taker):
    expected, target = store(1), store()
    assert SIZE > POST_BYTES / 4
    with owner("nixl") as giver:
        source = giver.source(taker)
        source.read([Extent(0, SIZE)] * 3, [target.view[:SIZE]] * 3)
        assert target.view == expected.view
        source.close()
    for each in (expected, target):
        each.close()


def test_only_registered_memory_of_the_store_is_read(taker):
    target = store()
    before = bytes(target.view)
    with owner("nixl") as giver:
        source = giver.source(taker)
        with pytest.raises(TransferError, match="does not have"):
            source.read([Extent(SIZE - 1, 2)], views(target, [(0, 2)]))
        source.read([Extent(0, 1)], views(target, [(0, 1)]))
        told = msgspec.msgpack.decode(giver.attach, type=Attached)
        beyond = Region(told.address + told.length - 1, 4096)
        with pytest.raises(TransferError, match="NOT_FOUND"):
            agent(taker).start(source._met[1], [beyond], [Region(0, 4096)])
        source.close()
    assert bytes(target.view)[1:] == before[1:]
    target.close()


@pytest.mark.usefixtures("tcp")
def test_what_was_closed_can_be_read_no_more(taker):
    """Not so over CMA: there the kernel lets every process of a user read all of his others."""
    target = store()
    with owner("nixl") as giver:
        source = giver.source(taker)
        source.read([Extent(0, 4096)], views(target, [(0, 4096)]))
        giver.say(close=True)
        assert giver.hear() == {"closed": True}
        with pytest.raises((InstanceLost, TransferError)):
            source.read([Extent(0, 4096)], views(target, [(0, 4096)]))
        source.close()
    target.close()


def test_memory_that_is_lost_while_its_owner_talks_on_breaks_only_the_way(taker):
    target = store()
    with owner("nixl") as giver:
        giver.process.kill()
        giver.process.wait()
        source = giver.source(taker, Waiting(is_cut=False))
        with pytest.raises(WayBroken) as caught:
            source.read(WHOLE, [target.view])
        assert isinstance(caught.value.__cause__, InstanceLost | TransferError)
        source.close()
    target.close()


@pytest.mark.usefixtures("ucx")
def test_an_owner_that_is_killed_is_lost_at_once_and_another_takes_its_place(taker):
    expected, target = store(1), store()
    for _ in range(2):
        with owner("nixl") as giver:
            source = giver.source(taker)
            source.read(WHOLE, [target.view])
            assert target.view == expected.view
            giver.process.kill()
            giver.process.wait()
            start_s = time.monotonic()
            with pytest.raises(InstanceLost):
                source.read(WHOLE, [target.view])
            assert time.monotonic() - start_s < CALM.timeout_s / 2
            source.close()
            target.fill(2)
    for each in (expected, target):
        each.close()


def endless(taker, giver, target, waiting):
    """A read out of a stopped process, which cannot end by itself; over TCP it needs the owner."""
    source = giver.source(taker, waiting)
    source.read([Extent(0, 1)], [target.view[:1]])
    stop(giver.process.pid)
    target.view[:] = bytes(SIZE)
    caught: list[Exception] = []

    def read() -> None:
        try:
            source.read(WHOLE, [target.view])
        except Exception as error:  # noqa: BLE001
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    return source, thread, caught


@pytest.mark.usefixtures("tcp")
@pytest.mark.parametrize("end", ["cancel", "deadline", "timeout"])
def test_nothing_is_written_once_a_read_was_given_up(taker, hasty, end):
    """NIXL reports such a read as cancelled, and writes the bytes if they come after all."""
    taker = hasty if end == "timeout" else taker
    expected, target, waiting = store(1), store(), Waiting()
    with owner("nixl") as giver, owner("nixl") as neighbour:
        others = neighbour.source(taker)
        source, thread, caught = endless(taker, giver, target, waiting)
        time.sleep(0.1)
        if end == "cancel":
            waiting.cancel()
        if end == "deadline":
            waiting.deadline_s = MonotonicClock().now()
        thread.join(PATIENCE_S)
        wanted = {"cancel": Cancelled, "deadline": DeadlineExceeded, "timeout": InstanceLost}
        assert [type(error) for error in caught] == [wanted[end]]
        assert not any(target.view)
        giver.process.send_signal(signal.SIGCONT)  # UCX may abort it, which is no loss any more
        beside = store()
        for _ in range(20):  # progress of whatever the taker still has
            others.read(WHOLE, [beside.view])
            time.sleep(0.01)
        assert beside.view == expected.view
        assert not any(target.view)
        assert taker._readers.num_retired == 1
        for each in (source, others, beside, expected, target):
            each.close()


@pytest.mark.usefixtures("tcp")
def test_neighbours_of_a_read_that_is_given_up_do_not_notice(taker, monkeypatch):
    monkeypatch.setattr(nixl_source, "NEIGHBOURS_S", PATIENCE_S)
    expected, target, waiting = store(1), store(), Waiting()
    failures: list[Exception] = []
    over = threading.Event()

    def neighbours(giver) -> None:
        source, beside = giver.source(taker), store()
        try:
            while not over.is_set():
                beside.view[:] = bytes(SIZE)
                source.read(WHOLE, [beside.view])
                assert beside.view == expected.view
        except Exception as error:  # noqa: BLE001
            failures.append(error)
        source.close()
        beside.close()

    with owner("nixl") as giver, owner("nixl") as other:
        threads = [threading.Thread(target=neighbours, args=(other,)) for _ in "12"]
        source, thread, caught = endless(taker, giver, target, waiting)
        for each in threads:
            each.start()
        time.sleep(0.2)
        waiting.cancel()
        thread.join(PATIENCE_S)
        time.sleep(0.2)
        over.set()
        for each in threads:
            each.join(PATIENCE_S)
        assert [type(error) for error in caught] == [Cancelled]
        assert failures == []
        assert taker._readers.num_retired == 1
        source.close()
    for each in (expected, target):
        each.close()


def test_a_manifest_that_is_not_nixls_is_refused(taker):
    with owner("nixl") as giver:
        for attach in (b"", b"file", giver.attach[:-3], giver.attach + b"x"):
            giver.attach = attach
            with pytest.raises(TransferError):
                giver.source(taker)


def test_agent_metadata_that_is_not_an_agents_is_refused(taker):
    target = store()
    with owner("nixl") as giver:
        told = msgspec.msgpack.decode(giver.attach, type=Attached)
        for damaged in (b"", told.metadata[:-9], bytes(len(told.metadata))):
            giver.attach = msgspec.msgpack.encode(msgspec.structs.replace(told, metadata=damaged))
            source = giver.source(taker)
            with pytest.raises(TransferError):
                source.read([Extent(0, 1)], [target.view[:1]])
            source.close()
    target.close()


def test_an_unknown_backend_is_named():
    with pytest.raises(TransferError, match=r"transfer\.nixl_backend=NONE"):
        NixlAgent("x", "NONE")


@given(st.lists(st.integers(1, 3 * POST_BYTES), min_size=1, max_size=6), st.randoms())
def test_portions_are_bounded_and_complete(lengths, rng):
    theirs = [Extent(rng.randrange(1 << 40), length) for length in lengths]
    rest, ours, at = sum(lengths), [], 0
    memory = memoryview(bytes(rest))
    while at < rest:
        length = min(rest - at, rng.choice([1, 1000, POST_BYTES, 2 * POST_BYTES + 1]))
        length = max(length, rest // 50)
        ours.append(memory[at : at + length])
        at += length
    moved = []
    for portion in _portions(theirs, ours):
        assert 0 < sum(len(target) for _, target in portion) <= POST_BYTES
        moved += portion
    assert sum(len(target) for _, target in moved) == rest
    far = [byte for offset, length in theirs for byte in (offset, offset + length)]
    assert moved[0][0] == far[0]
    assert moved[-1][0] + len(moved[-1][1]) == far[-1]
