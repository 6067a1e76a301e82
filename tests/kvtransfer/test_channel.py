"""One connection: who is let in, and that damage, silence and wake-ups end where they should."""

import math
import os
import random
import select
import socket
import threading
import time

import pytest

from kvtransfer import manifest
from kvtransfer.channel import MAX_HELD, Channel
from kvtransfer.manifest import Ack, Data, Fetch, Hello, Wait
from tests.kvtransfer.stores import QUICK, SECRET, pair
from tests.patience import PATIENCE_S
from triptych.core.clock import MonotonicClock
from triptych.core.errors import Cancelled, DeadlineExceeded, InstanceLost, TransferError

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def ends():
    channels = [Channel(sock, MonotonicClock(), PATIENCE_S) for sock in socket.socketpair()]
    yield channels
    for channel in channels:
        channel.close()


def be_hasty(*channels):
    """From now on silence is noticed soon. Not from the start: a handshake may take its time."""
    for channel in channels:
        channel._timeout_s = 0.3


def shake(taker, giver, secrets=(SECRET, SECRET)):
    found = {}

    def welcome():
        try:
            found["taker"] = giver.welcome(secrets[1], "giver")
        except (TransferError, InstanceLost) as error:
            found["error"] = error
            giver.close()

    thread = threading.Thread(target=welcome)
    thread.start()
    try:
        found["giver"] = taker.greet(secrets[0], "taker")
    except (TransferError, InstanceLost) as error:
        found["error_of_taker"] = error
    thread.join()
    return found


def test_both_sides_learn_who_the_other_is(ends):
    assert shake(*ends) == {"taker": "taker", "giver": "giver"}
    taker, giver = ends
    for turn in range(3):
        taker.send(Fetch("h", turn, "l", 0, 1, "tcp"))
        assert giver.receive()[0].epoch == turn
        giver.send(Wait())
        assert taker.receive() == (Wait(), 0)


@pytest.mark.parametrize("reads", [True, False])
def test_the_last_word_waits_for_its_reader_also_if_woken(reads):
    """A wake-up that comes late must not close the connection before the peer has read why; one
    that never reads is left behind in time."""
    taker, giver = (Channel(sock, MonotonicClock(), PATIENCE_S) for sock in socket.socketpair())
    shake(taker, giver)
    if not reads:
        be_hasty(giver)
    giver.on_wake = lambda: None
    giver.send(Wait())
    giver.wake()
    start_s = time.monotonic()
    thread = threading.Thread(target=giver.linger)
    thread.start()
    if reads:
        time.sleep(0.1)
        assert thread.is_alive()
        taker.send(Wait())
        assert taker.receive() == (Wait(), 0)
        taker.close()
    thread.join()
    assert reads or time.monotonic() - start_s >= giver._timeout_s
    taker.close()
    giver.close()


def test_what_is_held_goes_with_the_next_frame_or_when_we_wait(ends):
    taker, giver = ends
    shake(taker, giver)
    giver.send(Wait(), held=True)
    assert not taker.has_news()
    giver.send(Ack(), held=True)
    giver.send(Data(), [memoryview(bytes(5000)), memoryview(b"end")])
    data = [memoryview(bytearray(4999)), memoryview(bytearray(4))]
    assert [taker.receive() for _ in range(3)] == [(Wait(), 0), (Ack(), 0), (Data(), 5003)]
    taker.receive_payload(data)
    assert bytes(data[1]) == b"\0end"
    giver.send(Wait(), held=True)
    taker.send(Ack(), held=True)
    assert giver.wait(select.POLLIN, MonotonicClock().now() + 0.05, patient=True) is False
    assert taker.receive() == (Wait(), 0), "who waits has said what was to be said"


def test_frames_that_came_together_are_news_until_they_are_read(ends):
    taker, giver = ends
    shake(taker, giver)
    for message in (Wait(), Ack(), Wait()):
        giver.send(message, held=True)
    giver.flush()
    assert taker.receive() == (Wait(), 0)
    assert not select.select([taker._sock], [], [], 0)[0], "all of it was read ahead"
    assert taker.has_news()
    assert taker.wait(select.POLLIN, math.inf)
    assert [taker.receive()[0] for _ in range(2)] == [Ack(), Wait()]
    assert not taker.has_news()

    def stop():
        raise Cancelled("woken")

    for message in (Wait(), Ack()):
        giver.send(message, held=True)
    giver.flush()
    taker.receive()
    taker.on_wake = stop
    taker.wake()
    with pytest.raises(Cancelled):
        taker.wait(select.POLLIN, math.inf)


def test_a_frame_that_came_in_part_behind_another_must_not_be_long_in_coming(ends):
    taker, giver = ends
    shake(taker, giver)
    giver.send(Wait(), held=True)
    whole = giver._held.pop()
    giver._sock.sendall(bytes(whole) + bytes(whole)[:10])
    be_hasty(taker)
    assert taker.receive(math.inf) == (Wait(), 0)
    with pytest.raises(InstanceLost, match="silent"):
        taker.receive(math.inf)


def test_not_many_frames_wait_for_each_other(ends):
    taker, giver = ends
    shake(taker, giver)
    for _ in range(MAX_HELD - 1):
        giver.send(Wait(), held=True)
    assert not taker.has_news()
    giver.send(Wait(), held=True)
    assert taker.has_news()


def test_a_wake_up_while_held_frames_leave_is_not_lost(ends):
    """They do not leave at once, as the taker does not read; who wakes the giver wants an answer
    to its wait, not only to the sending inside it."""
    taker, giver = ends
    shake(taker, giver)
    woken = []
    giver.on_wake = lambda: woken.append(taker._sock.recv(64 << 20))
    giver._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    giver._held = [memoryview(bytes(1 << 20))]
    timer = threading.Timer(0.1, giver.wake)
    timer.start()
    reading = threading.Thread(target=_drain, args=(taker._sock, 1 << 20, woken))
    reading.start()
    start = time.monotonic()
    assert giver.wait(select.POLLIN, MonotonicClock().now() + PATIENCE_S, patient=True) is False
    assert time.monotonic() - start < PATIENCE_S, "woken, not timed out"
    timer.join()
    reading.join()


def _drain(sock, num_bytes, woken):
    """Read so much, but only after somebody was woken."""
    while not woken:
        time.sleep(0.01)
    num_bytes -= len(woken[0])
    while num_bytes > 0:
        try:
            num_bytes -= len(sock.recv(65_536))
        except BlockingIOError:
            time.sleep(0.001)


def test_the_last_word_is_waited_for_without_turning(ends):
    """What the peer said and nobody read is not what is waited for."""
    taker, giver = ends
    shake(taker, giver)
    for _ in range(2):
        taker.send(Wait(), held=True)
    taker.flush()
    assert giver.receive() == (Wait(), 0)
    assert giver.has_news()
    be_hasty(giver)
    turns = []
    wait = giver.wait
    giver.wait = lambda *args, **words: turns.append(1) or wait(*args, **words)
    giver.linger()
    assert len(turns) < 5


def test_a_taker_without_the_secret_is_not_welcomed(ends):
    found = shake(*ends, secrets=(b"guess", SECRET))
    assert isinstance(found["error"], TransferError)
    assert isinstance(found["error_of_taker"], InstanceLost)


def test_a_giver_without_the_secret_is_not_believed(ends):
    """It repeats our own words, the best it can do, and makes up the rest."""
    taker, impostor = ends
    found = {}

    def greet():
        try:
            taker.greet(SECRET, "taker")
        except TransferError as error:
            found["error"] = error

    thread = threading.Thread(target=greet)
    thread.start()
    time.sleep(0.05)
    hello = impostor._sock.recv(4096)
    body = manifest.encode(manifest.Welcome("giver", bytes(32)), 0)
    impostor._sock.send(body[0] + hello[20:36] + body[1])
    thread.join()
    assert "MAC" in str(found["error"])


def test_a_recorded_handshake_opens_nothing(ends):
    """A replayed Hello is answered, but the frame behind it does not fit the new nonce."""
    taker, giver = ends
    recorded = []
    send = taker._write

    def record(parts):
        recorded.append(b"".join(parts))
        send(parts)

    taker._write = record
    shake(taker, giver)
    taker.send(Fetch("h", 0, "l", 0, 1, "tcp"))
    giver.receive()
    ours, theirs = socket.socketpair()
    again = Channel(theirs, MonotonicClock(), PATIENCE_S)
    ours.sendall(b"".join(recorded))
    assert again.welcome(SECRET, "giver") == "taker"
    with pytest.raises(TransferError, match="MAC"):
        again.receive()
    again.close()
    ours.close()


def test_frames_fit_only_where_they_were_sent(ends):
    taker, giver = ends
    shake(taker, giver)
    giver.send(Wait())
    frame = taker._sock.recv(4096)
    taker.num_received += 1  # as if it had been read; now it comes again
    giver._sock.sendall(frame)
    with pytest.raises(TransferError, match="MAC"):
        taker.receive()
    giver.send(Wait())
    mirrored = taker._sock.recv(4096)
    taker._sock.sendall(mirrored)
    with pytest.raises(TransferError, match="MAC"):
        giver.receive()


def test_no_word_before_the_handshake(ends):
    with pytest.raises(TransferError, match="handshake"):
        ends[0].send(Ack())


def test_something_else_than_a_greeting(ends):
    taker, giver = ends
    taker._keys = giver._keys = (bytes(32), bytes(32))
    taker.send(Hello("x", bytes(32)))
    with pytest.raises(TransferError, match="MAC"):
        giver.welcome(SECRET, "giver")
    giver.send(Ack())
    with pytest.raises(TransferError, match="welcome"):
        taker.greet(SECRET, "taker")


def test_silence_is_a_loss_and_trickling_is_silence(ends):
    taker, giver = ends
    shake(taker, giver)
    be_hasty(taker)
    start = time.monotonic()
    with pytest.raises(InstanceLost, match="silent"):
        taker.receive()
    assert time.monotonic() - start > 0.25

    stop = threading.Event()

    def trickle():
        while not stop.wait(0.02):
            giver._sock.send(b"T")

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises((InstanceLost, TransferError)):
        taker.receive(math.inf)
    stop.set()
    thread.join()


def test_a_body_that_never_comes_is_not_waited_for_like_a_next_frame(ends):
    taker, giver = ends
    shake(taker, giver)
    giver._sock.send(
        manifest._PREFIX.pack(manifest.MAGIC, manifest.VERSION, 6, 0, 100, 0) + bytes(16)
    )
    be_hasty(taker)
    start = time.monotonic()
    with pytest.raises(InstanceLost, match="silent"):
        taker.receive(PATIENCE_S)
    assert time.monotonic() - start < PATIENCE_S


def test_a_deadline_is_told_from_silence(ends):
    taker, giver = ends
    shake(taker, giver)
    taker.deadline_s = MonotonicClock().now() + 0.1
    with pytest.raises(DeadlineExceeded):
        taker.receive()


def test_a_peer_that_does_not_read_blocks_nobody_for_ever(ends):
    taker, giver = ends
    shake(taker, giver)
    be_hasty(giver)
    huge = memoryview(bytearray(8 << 20))
    with pytest.raises(InstanceLost, match="silent"):
        giver.send(Data(), [huge])
    assert not giver.is_between_frames


def test_waking_interrupts_sending_and_receiving(ends):
    taker, giver = ends
    shake(taker, giver)

    def stop():
        raise Cancelled("woken")

    for channel, act in (
        (taker, taker.receive),
        (giver, lambda: giver.send(Data(), [memoryview(bytearray(8 << 20))])),
    ):
        channel.on_wake = stop
        timer = threading.Timer(0.05, channel.wake)
        timer.start()
        with pytest.raises(Cancelled):
            act()
        timer.join()


def test_waking_a_closed_channel_touches_nobodys_descriptor():
    ours, theirs = socket.socketpair()
    channel = Channel(ours, MonotonicClock(), PATIENCE_S)
    channel.close()
    channel.close()
    read, write = os.pipe()
    channel.wake()
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):
        os.read(read, 8)
    for fd in (read, write):
        os.close(fd)
    theirs.close()


def test_payloads_in_many_pieces(ends):
    taker, giver = ends
    shake(taker, giver)
    data = random.Random(5).randbytes(1_000_003)
    source, target = memoryview(data), memoryview(bytearray(len(data)))
    cuts = sorted(random.Random(6).sample(range(len(data)), 1500))
    pieces = [source[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    places = [target[at : at + 777] for at in range(0, len(data), 777)]
    thread = threading.Thread(target=lambda: giver.send(Data(), pieces))
    thread.start()
    assert taker.receive() == (Data(), len(data))
    taker.receive_payload(places)
    thread.join()
    assert target == source


# -- strangers at a listening outbox


async def test_an_outbox_survives_noise():
    rng = random.Random(9)
    async with pair("tcp") as both:
        prefix, body = manifest.encode(Hello("x", bytes(32)), 0)
        too_long = manifest._PREFIX.pack(manifest.MAGIC, manifest.VERSION, 1, 0, 2**31, 0)
        noises = [b"", b"G", b"GET / HTTP/1.1\r\n\r\n", prefix, prefix + bytes(16) + body, too_long]
        noises += [manifest.MAGIC + rng.randbytes(rng.randrange(300)) for _ in range(30)]
        noises += [rng.randbytes(rng.randrange(1, 3000)) for _ in range(30)]
        sockets = []
        for noise in noises:
            sock = socket.create_connection((both.endpoint.host, both.endpoint.port))
            sock.sendall(noise)
            sockets.append(sock)
        offer = both.offer()
        offer.append([1])
        offer.finish()
        await both.fetch(1, [2])
        both.assert_equal([1], [2])
        for sock in sockets:
            sock.close()
        deadline = time.monotonic() + PATIENCE_S
        while len(both.outbox._conversations) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(both.outbox._conversations) == 1
        await both.assert_idle()


async def test_a_stranger_who_says_nothing_is_put_out():
    async with pair("tcp", QUICK) as both:
        with socket.create_connection((both.endpoint.host, both.endpoint.port)) as sock:
            sock.settimeout(PATIENCE_S)
            assert sock.recv(1) == b""


async def test_only_the_configured_address_is_listened_on():
    async with pair("auto") as both:
        address, port = both.outbox._listeners[0].getsockname()
        assert (address, port) == ("127.0.0.1", both.endpoint.port)
        name = both.outbox._listeners[1].getsockname()
        assert name.startswith(b"\0triptych-")
        assert len(name) > 40, "too long to be guessed"
