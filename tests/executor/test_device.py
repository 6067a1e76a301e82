"""What goes wrong in a step is that step's failure, unless the device itself is gone."""

import pytest
import torch

from triptych.core.errors import InstanceLost, InvariantBroken
from triptych.executor.device import computing

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
