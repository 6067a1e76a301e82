"""What a kernel's caller must give. Knows tensors' outward properties, no operation."""

import torch
from torch import Tensor

from triptych.core.errors import InvariantBroken

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def require(holds: bool, rule: str) -> None:
    """Raise InvariantBroken that states ``rule`` unless it holds: a wrong stride or size would
    read other sequences' memory, or kill the whole process."""
    if not holds:
        raise InvariantBroken(f"a kernel's argument: {rule}")


def is_dense(x: Tensor) -> bool:
    """Whether the numbers of the last axis lie side by side."""
    return x.shape[-1] <= 1 or x.stride(-1) == 1
