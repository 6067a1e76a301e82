"""Where Triton kernels can run. Imports no Triton: a server on a CPU needs none."""

import os
from functools import cache
from importlib.util import find_spec

import torch


@cache
def is_interpreted() -> bool:
    """Whether kernels run step by step on the CPU (``TRITON_INTERPRET=1`` at their import): slow,
    and the same arithmetic, for tests on machines without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def has_triton() -> bool:
    """Whether the compiler is installed."""
    return find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Whether Triton kernels take tensors of ``device``."""
    return has_triton() and (device.type == "cuda" or is_interpreted())
