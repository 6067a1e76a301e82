"""Layers that decoders and vision towers share. Weights are taken when a layer is made.

Plain callables on tensors: no parameters to register, no hooks, no state between calls.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from triptych.executor.models.weights import Scope
from triptych.executor.ranks import WHOLE, Share

Layer = Callable[[Tensor], Tensor]


class Norm(Protocol):
    """A norm, alone or behind a sum."""

    def __call__(self, x: Tensor) -> Tensor:
        """The rows of ``x``, normalised."""
        ...

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """``x += delta``, in place, and the sum normalised."""
        ...


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation ``x * sigmoid(1.702 x)`` of GELU (arXiv 1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Layer] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "quick_gelu": quick_gelu,
}


class Linear:
    """``x W^T + b``. Several projections of one input are one matrix: fewer, larger products.

    Sizes are those of the whole. A rank has its ``share`` of every projection's outputs, or, where
    ``is_summand``, of the inputs: then its result is one summand of the whole, and without bias.
    """

    def __init__(
        self,
        scope: Scope,
        outputs: dict[str, int],
        inputs: int,
        *,
        bias: bool,
        share: Share = WHOLE,
        is_summand: bool = False,
    ) -> None:
        weights = [
            scope.take(f"{name}.weight", size, inputs, share=share, dim=int(is_summand))
            for name, size in outputs.items()
        ]
        biases = [
            scope.take(f"{name}.bias", size, share=share) for name, size in outputs.items() if bias
        ]
        self._matrix = scope.operations.matrix(
            _joined(weights), _joined(biases) if biases else None
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Of (rows, inputs): (rows, sum of outputs)."""
        return self._matrix(x)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class RmsNorm:
    """``x / sqrt(mean(x^2) + eps) * w`` (arXiv 1910.07467), in float32 inside."""

    def __init__(self, scope: Scope, size: int, eps: float) -> None:
        self.weight = scope.take("weight", size)
        self._operations = scope.operations
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape as ``x`` (tokens, size)."""
        return self._operations.norm(x, self.weight, self._eps)

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """``x += delta``, in place, and the sum normalised."""
        return self._operations.add_norm(x, delta, self.weight, self._eps)


class LayerNorm:
    """Layer normalisation with scale and shift."""

    def __init__(self, scope: Scope, size: int, eps: float) -> None:
        self.weight = scope.take("weight", size)
        self.bias = scope.take("bias", size)
        self._size = (size,)
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape as ``x``."""
        return functional.layer_norm(x, self._size, self.weight, self.bias, self._eps)

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """``x += delta``, in place, and the sum normalised."""
        return self(x.add_(delta))


class GatedMlp:
    """``down(act(gate(x)) * up(x))`` (SwiGLU, arXiv 2002.05202, for silu); of a rank with a
    ``share`` of the inner columns, which has no bias, one summand of it."""

    def __init__(
        self,
        scope: Scope,
        size: int,
        inner: int,
        *,
        activation: str = "silu",
        bias: bool = False,
        share: Share = WHOLE,
    ) -> None:
        outputs = {"gate_proj": inner, "up_proj": inner}
        self._gate_up = Linear(scope, outputs, size, bias=bias, share=share)
        self._down = Linear(
            scope, {"down_proj": size}, inner, bias=bias, share=share, is_summand=True
        )
        self._activation = ACTIVATIONS[activation]
        self._silu_mul = scope.operations.silu_mul if activation == "silu" else None

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape as ``x``."""
        gate_up = self._gate_up(x)
        if self._silu_mul is not None:
            return self._down(self._silu_mul(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return self._down(self._activation(gate) * up)


class PlainMlp:
    """``fc2(act(fc1(x)))``."""

    def __init__(self, scope: Scope, size: int, inner: int, activation: str) -> None:
        self._fc1 = Linear(scope, {"fc1": inner}, size, bias=True)
        self._fc2 = Linear(scope, {"fc2": size}, inner, bias=True)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape as ``x``."""
        return self._fc2(self._activation(self._fc1(x)))
