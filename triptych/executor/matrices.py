"""Matrices of a model in plain PyTorch, laid the way around that products read quickest.

Knows layouts and devices; no layer.
"""

import torch
from torch import Tensor
from torch.nn import functional


class Matrix:
    """``x W^T + b``."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight`` is (outputs, inputs), ``bias`` (outputs,)."""
        self._weight = weight.t()
        if weight.device.type == "cpu":
            # A row of a few tokens is bound by memory, and this way around it is read up to three
            # times as fast (MKL on an EPYC, float32); of many rows neither way is quicker.
            self._weight = self._weight.contiguous()
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Of (rows, inputs): (rows, outputs)."""
        if self._bias is None:
            return torch.mm(x, self._weight)
        return torch.addmm(self._bias, x, self._weight)


class Table:
    """A row for each token, read by token and multiplied with."""

    def __init__(self, weight: Tensor) -> None:
        """``weight`` is (tokens, width)."""
        self._weight = weight

    def rows(self, tokens: Tensor) -> Tensor:
        """Of ``tokens`` (n,), ids in range: (n, width)."""
        return functional.embedding(tokens, self._weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Of (rows, width): (rows, tokens)."""
        return functional.linear(x, self._weight)
