"""Reads tensors of a Hugging Face folder by name: only those of the parts that are wanted.

Knows safetensors files, their index, and the two ways in which tensors are named. Files are memory
mapped: a tensor that nobody takes is never read. Does not know any architecture.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from triptych.core.errors import ConfigError
from triptych.executor.operations import PLAIN, Operations
from triptych.executor.ranks import WHOLE, Share

VISION = "visual."
LANGUAGE = ("model.", "lm_head.")
_RENAMED = (("model.visual.", "visual."), ("model.language_model.", "model."))
_DERIVED = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
"""Buffers that old checkpoints carry and every implementation computes itself."""


def published_name(name: str) -> str:
    """The name in the published layout (``visual.``, ``model.``, ``lm_head.``) of a tensor that
    Transformers 5 calls ``model.visual.*`` or ``model.language_model.*``."""
    for prefix, published in _RENAMED:
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


class Weights:
    """The tensors of one folder, each taken at most once, or once by each rank. A context manager:
    ``with`` closes the files and checks, when nothing was raised inside, that no tensor of a part
    was left over."""

    def __init__(
        self, folder: Path, *, dtype: torch.dtype, device: str, operations: Operations = PLAIN
    ) -> None:
        """``operations`` are what layers made of these tensors compute with."""
        self.dtype = dtype
        self.device = device
        self.operations = operations
        self.num_bytes = 0
        """Of all tensors and parts of them taken so far, as they are held."""
        self._files: dict[Path, Any] = {}
        self._places = {
            published_name(name): (path, name)
            for name, path in _index(folder).items()
            if not name.endswith(_DERIVED)
        }
        self._parts: list[str] = []
        self._taken: set[str] = set()

    def __enter__(self) -> "Weights":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.clear()
        if kind is None:
            for name in sorted(self._places.keys() - self._taken):
                if name.startswith(tuple(self._parts)) or not name.startswith((VISION, *LANGUAGE)):
                    raise ConfigError(f"model.path: unexpected tensor {name}")

    def part(self, *prefixes: str) -> "Scope":
        """The scope of a part of the model. All tensors under ``prefixes`` must be taken."""
        self._parts += prefixes
        return Scope(self._take, "", self.operations)

    def skip(self, name: str) -> None:
        """A tensor that may be there and is not needed."""
        self._taken.add(name)

    def _take(self, name: str, shape: tuple[int, ...], share: Share, dim: int) -> torch.Tensor:
        if name not in self._places:
            raise ConfigError(f"model.path: missing tensor {name}")
        path, stored = self._places[name]
        self._taken.add(name)
        try:
            if path not in self._files:
                self._files[path] = safe_open(path, framework="pt")
            tensor = self._files[path].get_slice(stored)
            found = tuple(tensor.get_shape())
            if found != shape:
                raise ConfigError(f"model.path: tensor {name} has the shape {found}, not {shape}")
            part = (*(slice(None),) * dim, share.of(shape[dim]))
            tensor = tensor[part] if share != WHOLE else self._files[path].get_tensor(stored)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"model.path: tensor {stored} in {path.name}: {error}") from error
        held: torch.Tensor = tensor.to(device=self.device, dtype=self.dtype)
        self.num_bytes += held.nbytes
        return held


Take = Callable[[str, tuple[int, ...], Share, int], torch.Tensor]


class Scope:
    """Names below one prefix."""

    def __init__(self, take: Take, prefix: str, operations: Operations) -> None:
        self._take = take
        self._prefix = prefix
        self.operations = operations

    def at(self, name: str) -> "Scope":
        """The scope of the sub-module ``name``."""
        return Scope(self._take, f"{self._prefix}{name}.", self.operations)

    def take(self, name: str, *shape: int, share: Share = WHOLE, dim: int = 0) -> torch.Tensor:
        """The tensor ``name`` of ``shape``, or a rank's share of its dimension ``dim``, in the
        model's dtype and on its device. ConfigError that names it if it is missing or has another
        shape."""
        return self._take(f"{self._prefix}{name}", shape, share, dim)


def _index(folder: Path) -> dict[str, Path]:
    """Names as stored, and the file of each."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        path = folder / "model.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                return dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"model.path: {path}: {error}") from error
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model.path: {index}: no weight_map: {error}") from error
    if not isinstance(places, dict) or any(Path(name).name != name for name in places.values()):
        raise ConfigError(f"model.path: {index}: weight_map must name files of its own folder")
    return {name: folder / file for name, file in places.items()}
