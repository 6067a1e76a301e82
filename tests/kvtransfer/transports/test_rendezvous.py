"""Two ranks find each other whatever arrives in pieces, and whoever else calls."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtransfer.transports import rendezvous
from kvtransfer.transports.rendezvous import MAX_CALLERS, TOKEN_BYTES, Meeting, meet
from tests.patience import PATIENCE_S
from triptych.core.errors import InstanceLost

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def meeting():
    made = Meeting("127.0.0.1")
    yield made
    made.close()


def called(meeting):
    return socket.create_connection((meeting.host, meeting.port), PATIENCE_S)


@pytest.mark.parametrize("num_strangers", [1, MAX_CALLERS - 1])
def test_a_silent_stranger_is_in_nobodys_way(meeting, num_strangers):
    strangers = [called(meeting) for _ in range(num_strangers)]
    strangers[0].sendall(meeting.token[: TOKEN_BYTES // 2])
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(meeting.await_taker, PATIENCE_S, int)
        taker = meet(meeting.host, meeting.port, meeting.token, PATIENCE_S)
        giver = waiting.result(PATIENCE_S)
        giver.set("key", b"value")
        assert taker.get("key") == b"value"
    for sock in strangers:
        sock.settimeout(PATIENCE_S)
        assert sock.recv(1) == b"", "let go of when the taker is there"
        sock.close()
    giver.close()
    taker.close()


def test_a_wrong_token_is_sent_away_and_the_right_one_may_come_in_pieces(meeting):
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(meeting.await_taker, PATIENCE_S, int)
        with called(meeting) as stranger:
            stranger.sendall(bytes(TOKEN_BYTES))
            assert stranger.recv(1) == b""
        taker = called(meeting)
        for at in range(0, TOKEN_BYTES, 10):
            taker.sendall(meeting.token[at : at + 10])
            time.sleep(0.01)
        waiting.result(PATIENCE_S).close()
        taker.close()


def test_waiting_ends_by_the_check_by_time_and_when_it_is_closed(meeting):
    def gone():
        raise InstanceLost("cut")

    with called(meeting):
        with pytest.raises(InstanceLost, match="cut"):
            meeting.await_taker(PATIENCE_S, gone)
        with pytest.raises(InstanceLost, match="does not join"):
            meeting.await_taker(0.1, int)
        meeting.close()
        with pytest.raises(InstanceLost, match="stops"):
            meeting.await_taker(PATIENCE_S, int)


def test_a_value_may_come_in_pieces(meeting):
    value = bytes(range(250)) * 4
    data = rendezvous._LENGTHS.pack(3, len(value)) + b"key" + value
    with ThreadPoolExecutor() as pool, called(meeting) as taker:
        taker.sendall(meeting.token)
        giver = meeting.await_taker(PATIENCE_S, int)
        waiting = pool.submit(giver.get, "key")
        for at in range(0, len(data), 700):
            taker.sendall(data[at : at + 700])
            time.sleep(0.02)
        assert waiting.result(PATIENCE_S) == value
        giver.close()
