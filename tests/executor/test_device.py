"""What goes wrong in a step is that step's failure, unless the device itself is gone."""

import time

import pytest
import torch

from triptych.core.errors import ConfigError, InstanceLost, InvariantBroken
from triptych.core.plan import SLICES
from triptych.executor import device
from triptych.executor.device import Streams, computing, stream_beside

CPU = torch.device("cpu")


@pytest.mark.parametrize("error", [RuntimeError("shapes"), IndexError("17")])
def test_a_failed_step_is_no_more_than_that(error):
    with (
        pytest.raises(InvariantBroken, match=f"a step failed: .*{error}"),
        computing(CPU, "a step"),
    ):
        raise error


def test_memory_that_is_short_is_a_failed_step():
    with pytest.raises(InvariantBroken, match="a step failed"), computing(CPU, "a step"):
        raise torch.OutOfMemoryError("no room")


def test_a_device_that_failed_is_lost():
    with pytest.raises(InstanceLost, match="the device failed in a step"), computing(CPU, "a step"):
        raise torch.AcceleratorError("an illegal memory access was encountered")


def test_our_own_errors_stay_what_they_are():
    with pytest.raises(InstanceLost, match="a rank is gone"), computing(CPU, "a step"):
        raise InstanceLost("a rank is gone")


def test_a_cpu_has_no_streams_and_nothing_to_divide():
    assert stream_beside(CPU) is None
    with pytest.raises(ConfigError, match="only a GPU"):
        stream_beside(CPU, 0.5)


def test_streams_are_made_once_and_chosen_by_share(monkeypatch):
    made = []
    monkeypatch.setattr(device, "stream_beside", lambda _, share: made.append(share) or share)
    streams = Streams(CPU, 0.4, SLICES)
    assert made == pytest.approx([0.1, 0.2, 0.3, 0.4])  # parts of what pictures may have at all
    chosen = [streams.on(share) for share in (0.1, 0.25, 0.4, 0.5, 0.75, 1.0)]
    assert chosen == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.3, 0.4])
    undivided = Streams(CPU)
    assert [undivided.on(share) for share in (0.25, 1.0)] == [1.0, 1.0]
    assert made[4:] == [1.0]


@pytest.mark.gpu
def test_work_on_a_share_of_a_gpu_takes_longer_than_on_all_of_it():
    gpu, took_s = torch.device("cuda", 0), {}
    x = torch.rand(8192, 8192, device=gpu)
    for share in (1.0, 0.25, 1.0, 0.25):
        beside = stream_beside(gpu, share)
        torch.cuda.synchronize()
        began = time.monotonic()
        with computing(gpu, "a product", beside):
            for _ in range(20):
                x @ x
        took_s[share] = time.monotonic() - began
    assert took_s[0.25] > 2 * took_s[1.0]
