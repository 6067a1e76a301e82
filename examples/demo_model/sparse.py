"""The demo model with any tile selector in its prefill: its tensors, and its answers.

Knows Transformers' model and how to put another attention into it. Does not know selectors, nor
what is made of the figures.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers.masking_utils import sdpa_mask

from triptych.executor.attention.selectors.rules import Selector
from triptych.executor.attention.selectors.view import VisualSpan
from triptych.executor.kernels.block_mask import packed
from triptych.executor.kernels.reference.sparse import sparse_prefill

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from questions import KINDS, fresh_example  # noqa: E402

SIZE = 448
"""Pixels a side: the largest picture that the model knows, 256 tokens."""
_LONG_ANSWERS = ("describe", "chat")
_NAME = "triptych-sparse"
_AT_ONCE = 20

Layer = tuple[Tensor, Tensor, Tensor, float]
"""Query (rows, heads, head_dim), keys and values of one layer of one prompt, and the scale."""


@dataclass(frozen=True)
class Group:
    """Questions whose prompts are equally long, with pictures in the same places."""

    inputs: dict[str, Tensor]
    spans: list[VisualSpan]
    answers: list[str]


class DemoModel:
    """Greedy answers of the demo model under a selector, or dense without one."""

    def __init__(self) -> None:
        AttentionInterface.register(_NAME, self._attend)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            HERE,
            dtype=torch.float32,
            attn_implementation={"text_config": _NAME, "vision_config": "sdpa"},
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(HERE)
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(HERE)
        self._selector: Selector | None = None
        self._spans: list[VisualSpan] = []
        self._seen: list[Layer] | None = None
        self._remember_pictures()

    def groups(self, count: int, seed: int = 0) -> list[Group]:
        """``count`` held-out questions with short answers about large pictures, by length."""
        kinds = [kind for kind in KINDS if kind not in _LONG_ANSWERS]
        by_length: dict[tuple[int, int], list[tuple[list[int], list[dict[str, Tensor]], str]]] = {}
        for index in range(count):
            rng = random.Random(f"held-out/sparse/{seed}/{index}")
            example = fresh_example(kinds[index % len(kinds)], rng, ((SIZE, SIZE), (SIZE, SIZE)))
            pictures = [self._prepare(picture.draw()) for picture in example.pictures]
            ids = self._tokens(example.question, pictures)
            key = len(ids), len(pictures)
            by_length.setdefault(key, []).append((ids, pictures, example.answer))
        return [
            self._group(some[start : start + _AT_ONCE])
            for some in by_length.values()
            for start in range(0, len(some), _AT_ONCE)
        ]

    @torch.inference_mode()
    def right(self, group: Group, selector: Selector | None) -> list[bool]:
        """Which answers of a group are exactly the wanted ones."""
        self._selector, self._spans = selector, group.spans
        length = group.inputs["input_ids"].shape[1]
        out = self._model.generate(**group.inputs, do_sample=False, max_new_tokens=12)
        said = self._tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
        return [text.strip() == one for text, one in zip(said, group.answers, strict=True)]

    @torch.inference_mode()
    def layers(self, group: Group) -> list[Layer]:
        """Queries, keys and values of every layer of the group's first prompt, dense."""
        self._selector, self._spans, self._seen = None, group.spans, []
        self._model(**group.inputs)
        seen, self._seen = self._seen, None
        return seen

    def _attend(
        self,
        _module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _mask: Tensor | None,
        scaling: float,
        **_others: Any,
    ) -> tuple[Tensor, None]:
        """Transformers' attention: (batch, heads, rows, head_dim) to (batch, rows, heads, ...)."""
        rows = query.shape[2]
        if self._seen is not None:
            first = (one[0].transpose(0, 1).clone() for one in (query, key, value))
            self._seen.append((*first, scaling))
        if rows == 1 or self._selector is None:
            out = functional.scaled_dot_product_attention(
                query, key, value, is_causal=rows > 1, scale=scaling, enable_gqa=True
            )
            return out.transpose(1, 2), None
        batch, heads, _, size = query.shape
        by_row, keys, values = (one.transpose(1, 2) for one in (query, key, value))
        blocks = packed(
            [
                self._selector.select(one, its, self._spans, scale=scaling)
                for one, its in zip(by_row, keys, strict=True)
            ]
        )
        every = torch.arange(batch + 1, dtype=torch.int32)
        # Each prompt is one page, as long as itself: the twin reads keys where they lie.
        out = sparse_prefill(
            by_row.reshape(-1, heads, size),
            keys,
            values,
            every[:-1, None],
            every * rows,
            torch.full((batch,), rows, dtype=torch.int32),
            blocks,
            scale=scaling,
        )
        return out.view(batch, rows, heads, size), None

    def _remember_pictures(self) -> None:
        """The tower sees each picture once: selectors change nothing in it."""
        tower = self._model.model.visual
        forward: Callable[..., Any] = tower.forward
        known: dict[int, Any] = {}

        def remembered(pixels: Tensor, *rest: Any, **others: Any) -> Any:
            place = pixels.data_ptr()
            if place not in known:
                known[place] = forward(pixels, *rest, **others)
            return copy(known[place])  # the model cuts its output into pictures, in place

        tower.forward = remembered

    def _prepare(self, picture: Any) -> dict[str, Tensor]:
        return dict(self._processor(images=[picture], return_tensors="pt"))

    def _tokens(self, question: str, pictures: Sequence[dict[str, Tensor]]) -> list[int]:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        for picture in pictures:
            count = int(picture["image_grid_thw"].prod()) // 4
            text = text.replace("<|image_pad|>", "\0" * count, 1)
        return self._tokenizer(text.replace("\0", "<|image_pad|>")).input_ids

    def _group(self, some: Sequence[tuple[list[int], list[dict[str, Tensor]], str]]) -> Group:
        ids = torch.tensor([one[0] for one in some])
        is_picture = ids == self._model.config.image_token_id
        pictures = [picture for one in some for picture in one[1]]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.cat([picture["pixel_values"] for picture in pictures]),
            "image_grid_thw": torch.cat([picture["image_grid_thw"] for picture in pictures]),
            "mm_token_type_ids": is_picture.int(),
        }
        return Group(inputs, list(_spans(is_picture[0])), [one[2] for one in some])


def _spans(is_picture: Tensor) -> Iterator[VisualSpan]:
    """Runs of picture tokens; all pictures are squares of one size."""
    side = SIZE // 28
    places = is_picture.nonzero()[:, 0].tolist()
    for start in places[:: side * side]:
        yield VisualSpan(start, start + side * side, (1, side, side))
