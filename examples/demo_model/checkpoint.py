"""Training's own state on disk, so that an interrupted run goes on where it was.

Tensors only (safetensors): reading one back runs no code. Does not know what is trained.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_STEP = "step"


def save(
    path: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int
) -> None:
    """Write weights, optimizer states and the number of steps done; whole or not at all."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer/{index}/{parameter}/{name}"] = torch.as_tensor(value)
    tensors[_STEP] = torch.tensor(step)
    partial = path.with_suffix(".partial")
    # Tied weights share memory; safetensors wants every tensor to have its own.
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


def load(path: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Put a saved state into fresh objects of the same shape; the number of steps done."""
    tensors = load_file(path)
    step = int(tensors.pop(_STEP))
    states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    weights = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "model":
            weights[rest] = tensor
        else:
            index, parameter, value = rest.split("/")
            states[int(index)].setdefault(int(parameter), {})[value] = tensor
    model.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return step
