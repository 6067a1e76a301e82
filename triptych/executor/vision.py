"""Executes vision plans: pixels to visual tokens, written to embedding blocks.

Knows pixels, patches and blocks; which model makes rows of them is a ``VisionModel``.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.core.plan import SLICES, VisionPlan, VisionResult, VisionTask
from triptych.executor.block_store import BlockStore
from triptych.executor.device import Streams, computing
from triptych.executor.models.vision import VisionTower
from triptych.inputs.model_card import ImageGeometry

Pixels = NDArray[np.uint8]


class VisionModel(Protocol):
    """Rows of an embedding store from pixels."""

    def encode(self, pictures: Sequence[tuple[Pixels, tuple[int, int, int]]]) -> Tensor:
        """The visual tokens of all pictures (uint8 pixels of (height, width, 3), grid), in order:
        (tokens, width), in the embedding store's dtype."""
        ...


class TowerModel:
    """A vision tower behind the processor's normalisation. Implements ``VisionModel``."""

    def __init__(self, tower: VisionTower, geometry: ImageGeometry) -> None:
        self._tower = tower
        self._geometry = geometry

    def encode(self, pictures: Sequence[tuple[Pixels, tuple[int, int, int]]]) -> Tensor:
        """See ``VisionModel``."""
        patches = [self.patches(pixels) for pixels, _ in pictures]
        rows = patches[0] if len(patches) == 1 else torch.cat(patches)
        return self._tower(rows, [grid for _, grid in pictures])

    def patches(self, pixels: Pixels) -> Tensor:
        """See ``executor.patches.cut``; on the tower's device."""
        image = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._tower.device)
        return self._tower.operations.patches(image, self._geometry)


class VisionExecutor:
    """Implements ``core.ports.VisionExecutor``."""

    def __init__(
        self,
        model: VisionModel,
        embeddings: BlockStore,
        geometry: ImageGeometry,
        share: float = 1.0,
        *,
        is_divided: bool = False,
        nice: int = 0,
    ) -> None:
        """``share`` of a GPU's multiprocessors is used at most, of that the plan's if
        ``is_divided``; see ``device.Streams``. ``nice``: see ``core.ports.VisionExecutor``."""
        self.embeddings = embeddings
        self._model = model
        self._geometry = geometry
        device = embeddings.tensor.device
        self.nice = nice
        self._streams = Streams(device, share, SLICES if is_divided else ())
        self.encodes_alone = embeddings.tensor.device.type == "cpu"

    @torch.inference_mode()
    def execute(self, plan: VisionPlan) -> VisionResult:
        """Encode all pictures of ``plan`` in one batch and write their rows; on a GPU beside
        whatever the language model computes there.

        Raises InvariantBroken if pixels, grid, token count and blocks of a task do not fit
        together, or if the step fails: blocks of the plan then hold anything; InstanceLost if no
        step can follow."""
        began = time.monotonic()
        if plan.tasks:
            pictures = [(self._pixels(task), task.item.grid) for task in plan.tasks]
            slots = np.concatenate([self._slots(task) for task in plan.tasks])
            store = self.embeddings.tensor.view(-1, self.embeddings.layout.shape[-1])
            beside = self._streams.on(plan.share)
            with computing(store.device, "a vision step", beside):
                rows = self._model.encode(pictures).to(store.dtype)
                store.index_copy_(0, torch.from_numpy(slots).to(store.device), rows)
        return VisionResult(time.monotonic() - began)

    def _pixels(self, task: VisionTask) -> Pixels:
        pixels: Any = task.pixels
        patch, merge = self._geometry.patch_size, self._geometry.merge_size
        frames, rows, columns = task.item.grid
        shape = (rows * patch, columns * patch, 3)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
            raise InvariantBroken(f"pixels of a picture of grid {task.item.grid} must be {shape}")
        if frames != 1 or rows % merge or columns % merge:
            raise InvariantBroken(f"grid {task.item.grid} is not a picture's")
        if rows * columns // merge**2 != task.item.num_tokens:
            raise InvariantBroken(f"grid {task.item.grid} has not {task.item.num_tokens} tokens")
        return pixels

    def _slots(self, task: VisionTask) -> NDArray[np.int64]:
        size, count = self.embeddings.layout.block_size, task.item.num_tokens
        if len(task.blocks) * size < count:
            raise InvariantBroken("a task's embedding blocks do not cover its tokens")
        index = np.arange(count)
        return np.array(task.blocks, dtype=np.int64)[index // size] * size + index % size
