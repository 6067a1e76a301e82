"""The kernels that are measured, or their plain twins, and what every group of cases is given."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cli.gpu.rows import Rates
from cli.gpu.sizes import Sizes
from cli.gpu.timing import Timer
from triptych.executor.models.config import ModelSpec
from triptych.executor.operations import PLAIN, Needs, Operations, operations

Kernel = Callable[..., Any]


class Switch:
    """Whether steps of decodes are replayed from captured graphs."""

    is_on = True


class Kit(NamedTuple):
    """Functions of one signature whichever computes them."""

    name: str
    """``triton`` or ``plain``."""
    operations: Operations
    switch: Switch | None
    """None where nothing is captured."""
    gather_blocks: Kernel
    scatter_blocks: Kernel
    rms_norm: Kernel
    silu_mul: Kernel
    rotate_and_write: Kernel
    sample: Kernel
    paged_prefill: Kernel
    paged_decode: Kernel
    sparse_prefill: Kernel
    varlen_attention: Kernel


class Setup(NamedTuple):
    """What a group measures with."""

    device: torch.device
    dtype: torch.dtype
    sizes: Sizes
    kit: Kit
    timer: Timer
    rates: Rates
    has_flex: bool

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    def normal(self, *shape: int) -> torch.Tensor:
        """Random numbers of the model's type."""
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_()


def kit(choice: str, device: torch.device, spec: ModelSpec, block_size: int) -> Kit:
    """Those of ``choice``, as in ``model.kernels``, over KV in blocks of ``block_size`` tokens.
    Raises ConfigError if they cannot run."""
    needs = Needs(
        device=str(device),
        dtype="float32",
        threads=1,
        text_head=spec.text.head_dim,
        vision_head=spec.vision.hidden_size // spec.vision.num_heads,
        block_size=block_size,
    )
    if device.type == "cpu" and choice == "auto":
        choice = "plain"  # what runs beside a GPU's kernels where there is no GPU
    return _plain() if operations(choice, needs, deterministic=False) is PLAIN else _triton()


def _plain() -> Kit:
    from triptych.executor.kernels.reference import attention, blocks, layers, sampling, sparse

    return Kit(
        "plain",
        PLAIN,
        None,
        blocks.gather_blocks,
        blocks.scatter_blocks,
        layers.rms_norm,
        layers.silu_mul,
        layers.rotate_and_write,
        sampling.sample,
        attention.paged_prefill,
        attention.paged_decode,
        sparse.sparse_prefill,
        attention.varlen_attention,
    )


def _triton() -> Kit:
    # Here and not above: a machine without a GPU has no Triton, and must not need it.
    from cli.gpu.switched import SwitchedKernels
    from triptych.executor.kernels import (
        blocks,
        decode,
        norm,
        prefill,
        rotary,
        sampling,
        sparse_prefill,
        swiglu,
        varlen,
    )

    switch = Switch()
    return Kit(
        "triton",
        SwitchedKernels(switch),
        switch,
        blocks.gather_blocks,
        blocks.scatter_blocks,
        norm.rms_norm,
        swiglu.silu_mul,
        rotary.rotate_and_write,
        sampling.sample,
        prefill.paged_prefill,
        decode.paged_decode,
        sparse_prefill.sparse_prefill,
        varlen.varlen_attention,
    )
