"""How long a call takes: events of the device on CUDA, the host's clock elsewhere.

Knows calls, and nothing of what they do. Before each run the device's cache is filled with
something else: weights and KV of a real step come from memory.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from cli.gpu.rows import Rates, Spread
from cli.gpu.sizes import Sizes

Call = Callable[[], object]
MOST = 30
"""Runs of one case."""
_FILL_BYTES = 1 << 30
"""More than any cache, and enough that the host is ahead of the device once it is filled: a launch
is hidden then, as it is in a captured step."""


class Timer:
    """Repeats calls for about ``limit_s`` each."""

    def __init__(self, device: torch.device, limit_s: float) -> None:
        self._device = device
        self._limit_s = limit_s
        self._fill: torch.Tensor | None = None
        if device.type == "cuda":
            self._fill = torch.empty(_FILL_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, call: Call, *, is_step: bool = False, warm: Call | None = None) -> Spread:
        """Time of ``call`` after one run of ``warm`` (or itself). A step waits for the device, as
        an engine does that needs the tokens: its time has the host's part. Other calls are enqueued
        one behind the other."""
        (call if warm is None else warm)()
        times = self._times(call, 1, is_step=True)
        if more := min(MOST, int(self._limit_s / max(times[0], 1e-9))):
            times = self._times(call, more, is_step=is_step)
        return Spread(median(times), min(times), max(times), len(times))

    def _times(self, call: Call, count: int, *, is_step: bool) -> list[float]:
        if self._fill is None:
            return [_on_host(call) for _ in range(count)]
        pairs = []
        torch.cuda.synchronize(self._device)
        for _ in range(count):
            self._fill.zero_()
            pair = [_event(), _event()]
            pair[0].record()
            call()
            pair[1].record()
            if is_step:
                pair[1].synchronize()
            pairs.append(pair)
        torch.cuda.synchronize(self._device)
        return [1e-3 * began.elapsed_time(ended) for began, ended in pairs]


def rates(timer: Timer, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Rates:
    """Of this device: a square product, and a copy whose bytes count twice, read and written."""
    side = sizes.matmul
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    product = timer(lambda: torch.mm(left, right, out=out))
    source = torch.ones(sizes.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = timer(lambda: target.copy_(source))
    return Rates(2.0 * side**3 / product.median, 2.0 * sizes.copy_bytes / copy.median)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _on_host(call: Call) -> float:
    began = time.perf_counter()
    call()
    return max(time.perf_counter() - began, 1e-9)
