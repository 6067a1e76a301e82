"""Copies between a device and its host: which bytes, and who is told when. Both sides are memory of
the host here; streams need a GPU."""

import threading

import pytest
import torch

from triptych.core.layout import Layout
from triptych.executor.block_store import BlockStore
from triptych.executor.mirror import Mirror


@pytest.fixture
def sides():
    device = torch.arange(8 * 2 * 3 * 5).to(torch.uint8).view(8, 2, 3, 5)
    return device, torch.zeros_like(device)


@pytest.fixture
def mirror(sides, no_leak):
    made = Mirror(*sides)
    yield made
    made.close()


@pytest.mark.parametrize("blocks", [[], [0], [7], [2, 3, 4], [5, 1, 2, 7, 6], range(8)])
def test_whole_blocks_and_no_others(mirror, sides, blocks):
    device, host = sides
    mirror.down(blocks)
    copied = torch.zeros(8, dtype=torch.bool)
    copied[list(blocks)] = True
    assert host[copied].equal(device[copied])
    assert not host[~copied].any()
    before = device.clone()
    host.add_(1)
    mirror.up(blocks)
    assert device[copied].equal(host[copied])
    assert device[~copied].equal(before[~copied])


@pytest.mark.parametrize("layers", [range(1), range(1, 3), range(3), range(2, 2)])
def test_some_layers_of_all_shards(mirror, sides, layers):
    device, host = sides
    mirror.down([6, 2], layers)
    span = slice(layers.start, layers.stop)
    for block in (6, 2):
        assert host[block, :, span].equal(device[block, :, span])
        host[block, :, span] = 0
    assert not host.any()


def test_who_waits_is_told_in_order_behind_the_bytes(mirror, sides):
    device, host = sides
    told = []
    for block in range(8):

        def then(block: int = block) -> None:
            assert threading.current_thread() is not threading.main_thread()
            told.append((block, host[block].equal(device[block])))

        mirror.down([block], None, then)
    mirror.settle()
    assert told == [(block, True) for block in range(8)]
    mirror.settle()


def test_a_call_that_waits_is_behind_all_that_did_not(mirror):
    may_go, told = threading.Event(), []

    def slow() -> None:
        may_go.wait(10)
        told.append("slow")

    mirror.down([1], None, slow)
    waiting = threading.Thread(target=lambda: (mirror.down([2]), told.append("waited")))
    waiting.start()
    waiting.join(0.05)
    assert told == []
    may_go.set()
    waiting.join()
    assert told == ["slow", "waited"]


def test_what_goes_wrong_behind_a_copy_is_heard_once_and_nothing_is_told_behind_it(mirror):
    """Who is told of a layer takes the one before it for told."""
    told = []

    def wrong() -> None:
        raise ValueError("offered twice")

    mirror.down([1], None, wrong)
    mirror.down([2], None, lambda: told.append("next"))
    mirror.down([3])  # another thread's, who has done nothing wrong
    with pytest.raises(ValueError, match="offered twice"):
        mirror.settle()
    assert told == []
    mirror.down([2], None, lambda: told.append("later"))
    mirror.settle()
    assert told == ["later"]


def test_an_end_is_behind_what_is_to_be_told(sides, no_leak):
    mirror, told = Mirror(*sides), []
    mirror.down([1], None, lambda: told.append("told"))
    mirror.close()
    mirror.close()
    assert told == ["told"]


def test_on_a_cpu_the_view_is_current_at_once():
    store = BlockStore(Layout("kv", "tiny", "float32", (3, 5), 3), 4)
    told: list[str] = []
    store.stage([1], None, lambda: told.append("told"))
    assert told == ["told"]
    store.settle()
    store.close()


@pytest.mark.gpu
def test_layers_leave_while_later_ones_are_computed():
    """The stream that computes is busy behind the layer that leaves: it leaves before that ends."""
    layout = Layout("kv", "tiny", "float32", (4, 2, 16, 1, 64), 16)
    store = BlockStore(layout, 3, device="cuda")
    store.tensor[2, 0] = 7
    busy, told, is_over = torch.rand(8192, 8192, device="cuda"), [], False
    store.stage([2], range(1), lambda: told.append(is_over))
    for _ in range(50):
        busy = busy @ busy
    torch.cuda.current_stream().synchronize()
    is_over = True
    store.settle()
    assert told == [False]
    found = torch.frombuffer(store.view, dtype=torch.float32).view(3, 4, -1)
    assert found[2, 0].eq(7).all()
    assert not found[2, 1:].any()
    store.close()
