"""Where a step computes: the thread's device, and what its failure means.

Knows PyTorch's errors and ours; no plan, no model.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from triptych.core.errors import InstanceLost, InvariantBroken


@contextmanager
def computing(device: torch.device, what: str) -> Iterator[None]:
    """Around ``what`` on ``device``, until its results have been waited for.

    The current device belongs to a thread, and kernels are launched there wherever their tensors
    lie. Raises InvariantBroken if the work fails, InstanceLost if the device does: an illegal
    access is heard of late, and every later call fails by it too.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            yield
        except torch.AcceleratorError as error:
            raise InstanceLost(f"the device failed in {what}: {error}") from error
        except (RuntimeError, IndexError) as error:
            raise InvariantBroken(f"{what} failed: {error}") from error
