"""`triptych doctor --links`: every way of this machine is measured, and none is left open."""

import pytest

from cli import links
from kvtransfer.transports.nixl_agent import is_installed
from tests.patience import PATIENCE_S
from triptych.core.config import TransferConfig
from triptych.core.errors import InstanceLost

pytestmark = pytest.mark.usefixtures("no_leak")
CONFIG = TransferConfig(nccl_backend="gloo", timeout_s=PATIENCE_S)


async def test_every_way_is_measured_and_closed():
    said = []
    found = await links.measure(CONFIG, (1 << 20, 16 << 20), 2, said.append)
    ways = [link.way for link in found]
    expected = ["memcpy", "cma", "socket", "inproc", "shm", "nixl", "nccl", "tcp"]
    assert ways == [way for way in expected if way != "nixl" or is_installed()]
    for link in found:
        assert link.problem == ""
        assert len(link.latency_s) == 2
        assert all(one > 0 for one in link.latency_s)
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


class Breaking:
    """A way that works for a while."""

    name = "breaking"

    def __init__(self, moves: int) -> None:
        self.moves = moves

    async def move(self, block_bytes: int, count: int) -> float:
        self.moves -= 1
        if self.moves < 0:
            raise InstanceLost("it broke")
        return block_bytes * count / 1e9

    async def move_singly(self, block_bytes: int, count: int) -> list[float]:
        return [await self.move(block_bytes, 1) for _ in range(count)]


async def test_a_way_that_fails_is_not_asked_again():
    measured = links.Measured(Breaking(2), (4096,))
    await measured.take_turn(4096, 8192, counts=False)
    await measured.take_turn(4096, 8192, counts=True)
    assert measured.link() == links.Link("breaking", (), {4096: (pytest.approx(1e9),)})
    for _ in range(2):
        await measured.take_turn(4096, 8192, counts=True)
    assert measured.link() == links.Link("breaking", (), {}, "it broke")
    assert measured.way.moves == -1
