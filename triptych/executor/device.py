"""Where a step computes: the thread's device and stream, and what its failure means.

Knows PyTorch's errors and ours; no plan, no model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.cuda.green_contexts import GreenContext

from triptych.core.errors import ConfigError, InstanceLost, InvariantBroken

MULTIPROCESSORS = 8
"""Of a GPU go together: a share is a multiple of so many (Hopper's granularity of partitions)."""
_KEYS = "model.vision_share, engine.split"
"""Settings that ask for a part of a device."""


class Beside(NamedTuple):
    """A stream whose work does not wait for the device's default one, nor that for it."""

    stream: torch.cuda.Stream
    context: object = None
    """What bounds it to some multiprocessors: lives as long as the stream is used."""


def stream_beside(device: torch.device, share: float = 1.0) -> Beside | None:
    """Pictures are encoded there while the language model decodes; with a ``share`` below 1 on so
    many of the device's multiprocessors at most, so that the others are free for decode steps (a
    green context; SpaceServe, NeurIPS 2025). None on a CPU, whose threads are enough. Raises
    ConfigError if a share cannot be had."""
    if device.type != "cuda":
        if share < 1.0:
            raise ConfigError(f"{_KEYS}: only a GPU has multiprocessors to divide")
        return None
    if share == 1.0:
        return Beside(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    whole = torch.cuda.get_device_properties(device).multi_processor_count
    count = max(1, int(share * whole / MULTIPROCESSORS)) * MULTIPROCESSORS
    try:
        context: Any = GreenContext.create(num_sms=count, device_id=device.index or 0)
        return Beside(context.Stream(), context)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"{_KEYS}: no green contexts here: {error}") from error


class Streams:
    """Where pictures are encoded: on the most of a device that they may have, and on slices of it.
    Slices overlap: only one step of pictures is computed at a time."""

    def __init__(
        self, device: torch.device, share: float = 1.0, slices: Sequence[float] = ()
    ) -> None:
        """``slices`` are parts of the ``share``. All streams are made now. Raises ConfigError if
        one cannot be had; see ``stream_beside``."""
        parts = sorted({1.0, *slices})
        self._streams = {part: stream_beside(device, part * share) for part in parts}

    def on(self, share: float) -> Beside | None:
        """The largest part that is no larger than ``share``, else the smallest; None on a CPU."""
        least = next(iter(self._streams))
        return self._streams[max((s for s in self._streams if s <= share), default=least)]


@contextmanager
def computing(device: torch.device, what: str, beside: Beside | None = None) -> Iterator[None]:
    """Around ``what`` on ``device``, in the stream ``beside`` or the current one; behind it, it was
    waited for: its seconds are the device's, its error is its own, and memory that it read or wrote
    is ready for whoever works in another stream.

    The current device belongs to a thread, and kernels are launched there wherever their tensors
    lie. Raises InvariantBroken if the work fails, InstanceLost if the device does: an illegal
    access is heard of late, and every later call fails by it too.
    """
    try:
        if device.type == "cuda":
            stream = None if beside is None else beside.stream
            with torch.cuda.device(device), torch.cuda.stream(stream):
                try:
                    yield
                finally:  # of a step that failed too: what is queued still writes
                    torch.cuda.current_stream(device).synchronize()
        else:
            yield
    except torch.AcceleratorError as error:
        raise InstanceLost(f"the device failed in {what}: {error}") from error
    except (RuntimeError, IndexError) as error:
        raise InvariantBroken(f"{what} failed: {error}") from error
