"""Where a step computes: the thread's device and stream, and what its failure means.

Knows PyTorch's errors and ours; no plan, no model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from triptych.core.errors import InstanceLost, InvariantBroken


def stream_beside(device: torch.device) -> torch.cuda.Stream | None:
    """A stream whose work does not wait for the device's default one, nor that for it: pictures are
    encoded there while the language model decodes. None on a CPU, whose threads are enough."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def computing(
    device: torch.device, what: str, stream: torch.cuda.Stream | None = None
) -> Iterator[None]:
    """Around ``what`` on ``device``, in ``stream`` or the current one; behind it, it was waited
    for: its seconds are the device's, its error is its own, and memory that it read or wrote is
    ready for whoever works in another stream.

    The current device belongs to a thread, and kernels are launched there wherever their tensors
    lie. Raises InvariantBroken if the work fails, InstanceLost if the device does: an illegal
    access is heard of late, and every later call fails by it too.
    """
    try:
        if device.type == "cuda":
            with torch.cuda.device(device), torch.cuda.stream(stream):
                yield
                torch.cuda.current_stream(device).synchronize()
        else:
            yield
    except torch.AcceleratorError as error:
        raise InstanceLost(f"the device failed in {what}: {error}") from error
    except (RuntimeError, IndexError) as error:
        raise InvariantBroken(f"{what} failed: {error}") from error
