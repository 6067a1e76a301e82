"""The way through torch.distributed, by gloo under another name that keeps NCCL's rules."""

import random
import signal
import socket
import threading
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.transports.nccl import ALONE_BYTES, GATHER_BYTES, Attached, Nccl, gathered
from kvtransfer.transports.process_group import is_usable
from kvtransfer.transports.transport import Extent
from tests.kvtransfer.stores import CALM
from tests.kvtransfer.transports import nccl_rules
from tests.kvtransfer.transports.owners import SIZE, Waiting, drawn, joined, owner, store, views
from tests.signals import stop
from triptych.core.errors import InstanceLost, TransferError

nccl_rules.register()
CONFIG = msgspec.structs.replace(CALM, nccl_backend=nccl_rules.NAME)
HASTY = msgspec.structs.replace(CONFIG, timeout_s=3.0)
WHOLE = [Extent(0, SIZE)]
pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def taker():
    made = Nccl(CONFIG)
    yield made
    made.close()


@pytest.fixture
def hasty():
    made = Nccl(HASTY)
    yield made
    made.close()


def exchange(giver, source, theirs, ours) -> None:
    giver.say(push=theirs)
    source.read(theirs, ours)
    assert giver.hear() == {"pushed": True}


def test_bytes_arrive_however_both_sides_are_cut(taker):
    rng, expected, target = random.Random(5), store(1), store()
    with owner("nccl", CONFIG) as giver:
        source = giver.source(taker)
        for _ in range(12):
            theirs, ours = drawn(rng)
            exchange(giver, source, theirs, views(target, ours))
            assert joined(target, ours) == joined(expected, theirs)
        exchange(giver, source, WHOLE, [target.view])
        assert target.view == expected.view
        source.close()
    for each in (expected, target):
        each.close()


@pytest.mark.parametrize("when", ["before", "between", "within"])
def test_an_owner_that_is_killed_is_lost(taker, when):
    target = store()
    with owner("nccl", CONFIG) as giver:
        source = giver.source(taker)
        if when != "before":
            exchange(giver, source, WHOLE, [target.view])
        if when == "within":
            threading.Timer(0.3, giver.process.kill).start()
        else:
            giver.process.kill()
            giver.process.wait()
        start_s = time.monotonic()
        with pytest.raises(InstanceLost):
            source.read(WHOLE, [target.view])
        assert time.monotonic() - start_s < CONFIG.timeout_s / 2
        source.close()
    target.close()


@pytest.mark.parametrize("has_met", [True, False])
def test_an_owner_that_is_silent_is_given_up_and_cannot_come_back(hasty, has_met):
    target = store()
    with owner("nccl", HASTY) as giver:
        source = giver.source(hasty)
        if has_met:
            exchange(giver, source, WHOLE, [target.view])
        stop(giver.process.pid)
        giver.say(push=WHOLE)
        before = bytes(target.view)
        with pytest.raises(InstanceLost):
            source.read(WHOLE, [target.view])
        giver.process.send_signal(signal.SIGCONT)
        assert giver.hear() == {"pushed": "instance_lost"}
        assert bytes(target.view) == before
        source.close()
    target.close()


def test_a_taker_that_does_not_read_does_not_hold_the_giver(taker):
    with owner("nccl", HASTY) as giver:
        source = giver.source(taker)
        giver.say(push=WHOLE)
        assert giver.hear() == {"pushed": "instance_lost"}
        source.close()


def test_a_closed_store_of_rendezvous_is_lost(taker):
    target = store()
    with owner("nccl", CONFIG) as giver:
        giver.say(close=True)
        assert giver.hear() == {"closed": True}
        source = giver.source(taker)
        with pytest.raises(InstanceLost, match="rendezvous"):
            source.read([Extent(0, 1)], [target.view[:1]])
        source.close()
    target.close()


def test_a_cancelled_read_says_so(taker):
    target, waiting = store(), Waiting()
    with owner("nccl", CONFIG) as giver:
        source = giver.source(taker, waiting)
        giver.process.kill()
        giver.process.wait()
        waiting.cancel()
        with pytest.raises(Exception, match="cancelled"):
            source.read([Extent(0, 1)], [target.view[:1]])
        source.close()
    target.close()


def test_a_manifest_that_is_not_nccls_is_refused(taker):
    with owner("nccl", CONFIG) as giver:
        for attach in (b"", b"stream", giver.attach[:-1], giver.attach + b"x"):
            giver.attach = attach
            with pytest.raises(TransferError):
                giver.source(taker)


def test_only_who_has_the_token_joins(taker):
    expected, target = store(1), store()
    with owner("nccl", CONFIG) as giver:
        told = msgspec.msgpack.decode(giver.attach, type=Attached)
        giver.say(push=WHOLE)
        for token in (b"", b"short", bytes(32)):
            with socket.create_connection(("127.0.0.1", told.port)) as stranger:
                stranger.sendall(token)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b"", "put out"
        source = giver.source(taker)
        source.read(WHOLE, [target.view])
        assert giver.hear() == {"pushed": True}
        assert target.view == expected.view
        source.close()
    for each in (expected, target):
        each.close()


def test_what_is_usable_here():
    assert is_usable("gloo")
    assert is_usable(nccl_rules.NAME)
    assert not is_usable("nobody")
    assert not Nccl.is_usable(msgspec.structs.replace(CONFIG, nccl_backend="nobody"))


@given(st.lists(st.integers(1, 2 * GATHER_BYTES), min_size=1, max_size=40))
def test_extents_gather_into_bounded_messages_in_order(lengths):
    extents = [Extent(number, length) for number, length in enumerate(lengths)]
    messages = list(gathered(extents))
    assert [extent for message in messages for extent in message] == extents
    for message in messages:
        assert len(message) == 1 or all(one.length < ALONE_BYTES for one in message)
        assert len(message) == 1 or sum(one.length for one in message) <= GATHER_BYTES
