"""Drives executors by hand-written plans, as an engine would, and asks Transformers the same."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests import checkpoints
from tests.patience import PATIENCE_S
from triptych.core.config import CacheConfig, ClusterConfig, Config, EngineConfig, ModelConfig
from triptych.core.config_sparse import SparseConfig
from triptych.core.hashing import digest
from triptych.core.ids import BlockId, JobId
from triptych.core.lifecycle import Role, Stage
from triptych.core.plan import (
    Draw,
    Drawn,
    LanguagePlan,
    PlacedItem,
    Segment,
    VisionPlan,
    VisionTask,
)
from triptych.core.request import Item, Prompt, Sampling
from triptych.executor.build import Executors, build

EPD: Role = frozenset(Stage)
DENSE = SparseConfig()


def executors(
    path: Path | str,
    role: Role = EPD,
    *,
    dtype: str = "float32",
    num_ranks: int = 1,
    parallel: str = "inside",
    timeout_s: float = PATIENCE_S,
    kernels: str = "auto",
    deterministic: bool = False,
    device: str = "cpu",
    sparse: SparseConfig = DENSE,
    vision_share: float = 1.0,
    decode_gap_s: float = 0.0,
    split: str = "whole",
    **cache: int | str,
) -> Executors:
    """Executors of small stores on a CPU."""
    sizes = {"kv_blocks": 160, "embedding_blocks": 80, "block_size": 16, "embedding_block_size": 7}
    model = ModelConfig(
        dtype=dtype,
        device=device,
        tensor_parallel=num_ranks,
        parallel=parallel,
        kernels=kernels,
        vision_share=vision_share,
        decode_gap_s=decode_gap_s,
    )
    cluster = ClusterConfig(timeout_s=timeout_s, start_timeout_s=2 * PATIENCE_S)
    config = Config(
        model=model,
        cluster=cluster,
        engine=EngineConfig(deterministic=deterministic, split=split),
        sparse=sparse,
        cache=CacheConfig(**{**sizes, **cache}),
    )
    return build(str(path), config, role, "tiny")


class Scene(msgspec.Struct):
    """A prompt with its resized pictures."""

    prompt: Prompt
    pixels: list[Any]


def scene(rng: random.Random, pieces: Sequence[int | tuple[int, int]], image_token: int) -> Scene:
    """Pieces are numbers of random text tokens and merged grids (rows, columns) of pictures."""
    tokens: list[int] = []
    items: list[Item] = []
    pixels = []
    for piece in pieces:
        if isinstance(piece, int):
            tokens += [rng.randrange(200) for _ in range(piece)]
            continue
        rows, columns = piece
        noise = np.random.default_rng(rng.getrandbits(32))
        small = noise.integers(0, 256, (rows + 1, columns + 1, 3), "uint8")
        size = (columns * 28, rows * 28)
        pixels.append(np.array(Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)))
        key = digest("test", pixels[-1].tobytes())
        items.append(Item(key, len(tokens), rows * columns, (1, rows * 2, columns * 2)))
        tokens += [image_token] * (rows * columns)
    return Scene(Prompt(tuple(tokens), tuple(items)), pixels)


class Sequence_:
    """One sequence: its scene, its blocks, what is computed of it."""

    def __init__(self, driver: "Driver", scene: Scene, sampling: Sampling, salt: bytes) -> None:
        self.scene, self.sampling, self.salt = scene, sampling, salt
        self.tokens = list(scene.prompt.token_ids)
        self.computed = 0
        self.blocks: list[BlockId] = []
        self.item_blocks: list[tuple[BlockId, ...]] = []
        self.drawn: list[Drawn] = []
        self.driver = driver

    def segment(self, count: int, steps: int = 1) -> Segment:
        """The next ``count`` tokens; draws if they are the last ones. There are blocks for a run of
        so many steps."""
        start, end = self.computed, min(self.computed + count, len(self.tokens))
        while len(self.blocks) * self.driver.block_size < end + steps - 1:
            self.blocks.append(self.driver.free_kv.pop())
        items = tuple(
            PlacedItem(item, blocks if item.end > start else ())
            for item, blocks in zip(self.scene.prompt.items, self.item_blocks, strict=True)
            if item.offset < end
        )
        draw = None
        if end == len(self.tokens):
            history = tuple(self.tokens) if self.sampling.needs_history else ()
            draw = Draw(self.sampling, end, len(self.scene.prompt), history)
        tokens = tuple(self.tokens[start:end])
        return Segment(JobId("job"), start, tokens, tuple(self.blocks), items, draw, self.salt)

    def advance(self, segment: Segment, drawn: Drawn | None) -> None:
        """Note what was computed and drawn."""
        self.computed = segment.end
        if drawn is not None:
            self.drawn.append(drawn)
            self.tokens.append(drawn.token)


class Driver:
    """A tiny engine: blocks are handed out in random order and never come back."""

    def __init__(self, executors: Executors, seed: int = 0) -> None:
        self.executors = executors
        self.share = 1.0
        rng = random.Random(seed)
        self.free_kv: list[BlockId] = []
        self.free_rows: list[BlockId] = []
        if executors.language is not None:
            memory = executors.language.memory
            self.block_size = memory.layout.block_size
            self.free_kv = [BlockId(i) for i in range(memory.num_blocks)]
        if executors.embeddings is not None:
            self.free_rows = [BlockId(i) for i in range(executors.embeddings.num_blocks)]
        rng.shuffle(self.free_kv)
        rng.shuffle(self.free_rows)

    def add(self, scene: Scene, sampling: Sampling | None = None, salt: bytes = b"") -> Sequence_:
        """Encode the scene's pictures in one step; the sequence is not prefilled yet."""
        sequence = Sequence_(self, scene, sampling or Sampling(), salt)
        tasks = []
        for item, pixels in zip(scene.prompt.items, scene.pixels, strict=True):
            size = self.executors.embeddings.layout.num_blocks(item.num_tokens)
            blocks = tuple(self.free_rows.pop() for _ in range(size))
            sequence.item_blocks.append(blocks)
            tasks.append(VisionTask(JobId("job"), item, pixels, blocks))
        if tasks:
            self.executors.vision.execute(VisionPlan(tuple(tasks), self.share))
        return sequence

    def step(self, *work: tuple[Sequence_, int]) -> None:
        """One step over several sequences, each with a number of tokens."""
        segments = tuple(sequence.segment(count) for sequence, count in work)
        result = self.executors.language.execute(LanguagePlan(segments))
        for (sequence, _), segment, drawn in zip(work, segments, result.drawn, strict=True):
            sequence.advance(segment, drawn)

    def generate(self, sequence: Sequence_, chunk: int, count: int) -> list[int]:
        """Prefill in chunks, then decode until ``count`` tokens are drawn."""
        while len(sequence.drawn) < count:
            self.step((sequence, chunk if not sequence.drawn else 1))
        return [drawn.token for drawn in sequence.drawn]

    def kv(self, sequence: Sequence_) -> torch.Tensor:
        """(layers, 2, tokens, all KV heads, head_dim) of a sequence, its shards put together."""
        whole = self.runs[sequence.blocks].permute(2, 3, 0, 4, 1, 5, 6)
        return whole.flatten(4, 5).flatten(2, 3)[:, :, : sequence.computed]

    @property
    def runs(self) -> torch.Tensor:
        """The KV store: (blocks, shards, layers, 2, tokens of a block, heads, head_dim)."""
        memory = self.executors.language.memory
        return memory.tensor.unflatten(0, (memory.num_blocks, -1))

    def rows(self, sequence: Sequence_) -> torch.Tensor:
        """The embedding rows of all pictures of a sequence."""
        store = self.executors.embeddings.tensor
        parts = [
            store[list(blocks)].flatten(0, 1)[: item.num_tokens]
            for item, blocks in zip(sequence.scene.prompt.items, sequence.item_blocks, strict=True)
        ]
        return torch.cat(parts)


def inputs_of(scene: Scene) -> dict[str, Any]:
    """The inputs of Transformers' model for a scene, its pictures by Transformers' processor."""
    ids = torch.tensor([scene.prompt.token_ids])
    kinds = torch.zeros_like(ids)
    for item in scene.prompt.items:
        kinds[:, item.offset : item.end] = 1
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["mm_token_type_ids"] = kinds
    if scene.pixels:
        processor = Qwen2VLImageProcessorPil(do_resize=False)
        pictures = [Image.fromarray(pixels) for pixels in scene.pixels]
        made = processor(images=pictures, return_tensors="pt")
        inputs["pixel_values"] = made["pixel_values"]
        inputs["image_grid_thw"] = made["image_grid_thw"]
    return inputs


@torch.no_grad()
def expected(folder: Path, scene: Scene, count: int) -> tuple[list[int], torch.Tensor]:
    """Transformers' greedy tokens and first-token logits."""
    judge = checkpoints.judge(folder)
    result = judge.generate(
        **inputs_of(scene),
        max_new_tokens=count,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return result.sequences[0, len(scene.prompt) :].tolist(), result.logits[0][0]
