"""`triptych doctor --links`: every way of this machine is measured, and none is left open."""

import msgspec
import pytest

from cli import links
from kvtransfer.transports.nixl_agent import is_installed
from triptych.core.config import TransferConfig

pytestmark = pytest.mark.usefixtures("no_leak")
CONFIG = TransferConfig(nccl_backend="gloo")


async def test_every_way_is_measured_and_closed():
    said = []
    found = await links.measure(CONFIG, (1 << 20, 16 << 20), 2, said.append)
    ways = [link.way for link in found]
    expected = ["memcpy", "socket", "inproc", "shm", "nixl", "nccl", "tcp"]
    assert ways == [way for way in expected if way != "nixl" or is_installed()]
    for link in found:
        assert link.problem == ""
        assert len(link.latency_s) == 2
        assert all(0 < one < 10 for one in link.latency_s)
        assert {size: len(rates) for size, rates in link.bytes_per_s.items()} == {
            1 << 20: 2,
            16 << 20: 2,
        }
    assert any("turn 2 of 2" in line for line in said)
    text = links.table(found)
    assert "16 MiB" in text
    assert text.count("GB/s") == 2 * len(found)


def test_a_way_that_cannot_be_measured_says_why():
    good = links.Link("shm", (1e-4,), {4096: (1e9,)})
    text = links.table([good, links.Link("nixl", (), {}, "the peer is silent")])
    assert "the peer is silent" in text
    assert "100 us" in text


def test_a_turn_that_fails_ends_the_measuring_of_its_way():
    good = links.Link("shm", (1e-4,), {4096: (1e9,)})
    bad = msgspec.structs.replace(good, problem="it broke")
    assert links._joined(good, bad).problem == "it broke"
    assert links._joined(good, good).latency_s == (1e-4, 1e-4)
