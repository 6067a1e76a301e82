"""Floating-point operations and bytes that a step cannot do without. Arithmetic only.

A multiplication and an addition are two operations. Bytes are those of weights, keys and values and
of what goes in and out: what a layer hands to the next one might stay on the chip, and is left out.
"""

from collections.abc import Sequence

from cli.gpu.rows import Work
from cli.gpu.sizes import Picture
from triptych.executor.models.config import TextSpec, VisionSpec


def layer_weights(text: TextSpec) -> int:
    """Numbers in the matrices of one layer."""
    inner = text.num_heads * text.head_dim
    qkv = text.hidden_size * (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    return qkv + inner * text.hidden_size + 3 * text.hidden_size * text.intermediate_size


def language_bytes(text: TextSpec, item: int) -> int:
    """Of all weights of the decoder, with table and head."""
    ends = (1 if text.is_tied else 2) * text.vocab_size * text.hidden_size
    return item * (text.num_layers * layer_weights(text) + ends)


def kv_bytes(text: TextSpec, item: int) -> int:
    """Keys and values of one token in all layers."""
    return item * text.num_layers * 2 * text.num_kv_heads * text.head_dim


def causal_pairs(start: int, end: int) -> int:
    """Pairs of a query at ``[start, end)`` and a key that it sees."""
    return (end * (end + 1) - start * (start + 1)) // 2


def attention_flops(text: TextSpec, pairs: float) -> float:
    """Of one layer: two products for each pair and head."""
    return 4.0 * text.num_heads * text.head_dim * pairs


def prefill(text: TextSpec, tokens: int, chunk: int, item: int) -> list[Work]:
    """A prompt in chunks, each at the prefix before it; logits of the last token."""
    phases, weights = [], text.num_layers * layer_weights(text)
    head = text.vocab_size * text.hidden_size
    for start in range(0, tokens, chunk):
        end = min(start + chunk, tokens)
        last = head if end == tokens else 0
        phases += [
            Work(2.0 * ((end - start) * weights + last), item * (weights + last)),
            Work(
                text.num_layers * attention_flops(text, causal_pairs(start, end)),
                kv_bytes(text, item) * end,
            ),
        ]
    return phases


def decode(text: TextSpec, batch: int, context: int, item: int) -> list[Work]:
    """One token of each sequence, as one phase: nearly all of it is reading."""
    weights = text.num_layers * layer_weights(text) + text.vocab_size * text.hidden_size
    attended = text.num_layers * attention_flops(text, batch * context)
    read = item * weights + batch * context * kv_bytes(text, item)
    return [Work(2.0 * batch * weights + attended, read)]


def encode(vision: VisionSpec, pictures: Picture, item: int) -> list[Work]:
    """Matrices, then attention within windows and within whole pictures."""
    size, square = vision.hidden_size, vision.hidden_size * vision.merge_size**2
    patches = pictures.rows * pictures.columns
    total, tokens = pictures.number * patches, pictures.number * patches / vision.merge_size**2
    matrices = 3 if vision.mlp == "gated" else 2
    body = vision.depth * (4 * size * size + matrices * size * vision.intermediate_size)
    body += vision.patch_values * size
    merger = square * square + square * vision.out_size
    number = item * (body + merger + total * vision.patch_values + tokens * vision.out_size)
    pairs = {True: patches**2, False: sum(n * n for n in window_lengths(vision, pictures))}
    layers = [index in vision.full_blocks for index in range(vision.depth)]
    attended = 4.0 * size * pictures.number * sum(pairs[is_full] for is_full in layers)
    return [Work(2.0 * (total * body + tokens * merger), number), Work(attended, 0.0)]


def window_lengths(vision: VisionSpec, pictures: Picture) -> list[int]:
    """Patches of the windows of one picture."""
    side = vision.window_patches * vision.merge_size
    if not side:
        return [pictures.rows * pictures.columns]
    cuts = [_cut(length, side) for length in (pictures.rows, pictures.columns)]
    return [height * width for height in cuts[0] for width in cuts[1]]


def _cut(length: int, side: int) -> Sequence[int]:
    return [min(side, length - first) for first in range(0, length, side)]
