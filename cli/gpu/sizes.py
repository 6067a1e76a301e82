"""What is measured: the model of published sizes, and a toy of the same shape for a CPU."""

from typing import NamedTuple

from triptych.executor.models.config import ModelSpec, TextSpec, VisionSpec


class Picture(NamedTuple):
    """``number`` equal pictures of one batch, in patches."""

    number: int
    rows: int
    columns: int


class Sizes(NamedTuple):
    """Of one run. Tokens, unless something else is said."""

    spec: ModelSpec
    block_size: int
    matmul: int
    """Rows and columns of the matrices whose product gives the arithmetic rate."""
    copy_bytes: int
    chunk: int
    """A prompt is prefilled so many tokens at a time."""
    prefills: tuple[int, ...]
    decodes: tuple[tuple[int, int], ...]
    """Sequences, and the context of each."""
    pictures: tuple[Picture, ...]
    attentions: tuple[int, ...]
    """Prompts whose attention is measured alone, in one layer."""
    densities: tuple[float, ...]
    tile: int
    flex_at: int
    """Of ``attentions``, the one at which FlexAttention is compiled: that takes its time."""
    paged: tuple[tuple[int, int], ...]
    """As ``decodes``: attention alone, in one layer."""
    spans: Picture
    copied_blocks: int
    rows: int
    """Tokens of a step, for what is done to each by itself."""
    drawn: tuple[int, ...]
    """Rows of logits to draw from."""
    peer_prefills: tuple[int, ...]
    peer_decodes: tuple[tuple[int, int], ...]


_QWEN = ModelSpec(
    "qwen2_5_vl",
    TextSpec(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        norm_eps=1e-6,
        rope_theta=1e6,
        rope_sections=(16, 24, 24),
        is_tied=False,
    ),
    VisionSpec(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        in_channels=3,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        out_size=3584,
        norm="rms",
        mlp="gated",
        activation="silu",
        window_patches=4,
        full_blocks=(7, 15, 23, 31),
    ),
)
"""Qwen2.5-VL-7B (arXiv 2502.13923, table 1)."""

REAL = Sizes(
    spec=_QWEN,
    block_size=16,
    matmul=8192,
    copy_bytes=1 << 32,
    chunk=8192,
    prefills=(1024, 8192, 32768, 131072),
    decodes=tuple((batch, context) for context in (1024, 8192, 32768) for batch in (1, 8, 64, 256)),
    pictures=(
        *(Picture(number, 32, 32) for number in (1, 8, 32)),
        *(Picture(number, 52, 92) for number in (1, 8, 32)),
    ),
    attentions=(8192, 32768, 131072),
    densities=(0.125, 0.25),
    tile=128,
    flex_at=32768,
    paged=((64, 1024), (64, 8192), (8, 32768)),
    spans=Picture(8, 32, 32),
    copied_blocks=2048,
    rows=8192,
    drawn=(64, 256),
    peer_prefills=(1024, 8192),
    peer_decodes=((1, 1024), (8, 1024)),
)

_TINY = ModelSpec(
    "qwen2_5_vl",
    TextSpec(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        norm_eps=1e-6,
        rope_theta=1e6,
        rope_sections=(2, 3, 3),
        is_tied=False,
    ),
    VisionSpec(
        depth=2,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        in_channels=3,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        out_size=64,
        norm="rms",
        mlp="gated",
        activation="silu",
        window_patches=4,
        full_blocks=(1,),
    ),
)

TOY = Sizes(
    spec=_TINY,
    block_size=16,
    matmul=128,
    copy_bytes=1 << 20,
    chunk=32,
    prefills=(16, 32, 48, 64),
    decodes=tuple((batch, context) for context in (8, 16, 24) for batch in (1, 2, 3, 4)),
    pictures=(
        *(Picture(number, 4, 4) for number in (1, 2, 3)),
        *(Picture(number, 6, 12) for number in (1, 2, 3)),
    ),
    attentions=(64, 128, 192),
    densities=(0.125, 0.25),
    tile=16,
    flex_at=128,
    paged=((3, 8), (3, 16), (2, 24)),
    spans=Picture(2, 4, 4),
    copied_blocks=8,
    rows=24,
    drawn=(2, 3),
    peer_prefills=(16, 32),
    peer_decodes=((1, 8), (2, 8)),
)


def told(tokens: int) -> str:
    """``8k`` for 8192."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
