"""Shapes of published models: the sizes that decide what computing them takes.

From each model's config.json on its hub page, as named. Knows no seconds and no hardware. Weights
are counted from the shapes; norms and biases, under 0.1 %, are left out.
"""

import msgspec

BYTES = 2
"""Of a BF16 number."""


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder: attention with ``kv_heads`` groups, then a gated (or plain) perceptron."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    head_dim: int = 128
    is_gated: bool = True
    is_tied: bool = False

    @property
    def layer_parameters(self) -> int:
        """Numbers in one layer's matrices."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + (3 if self.is_gated else 2) * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """Numbers in all matrices and embeddings."""
        words = self.vocabulary * self.hidden * (1 if self.is_tied else 2)
        return self.layers * self.layer_parameters + words

    def kv_token_bytes(self, number_bytes: int = BYTES) -> int:
        """Bytes of keys and values of one token, all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * number_bytes


class Vision(msgspec.Struct, frozen=True, kw_only=True):
    """A vision transformer and the perceptron that projects into the decoder.

    ``patches`` become one visual token. ``full_layers`` attend over ``whole`` patches (0: the whole
    picture), the others over ``window`` patches. ``projector``: its matrices, in and out sizes.
    """

    layers: int
    full_layers: int
    hidden: int
    heads: int
    inner: int
    patches: int
    projector: tuple[tuple[int, int], ...]
    is_gated: bool = False
    patch_numbers: int = 3 * 14 * 14
    whole: int = 0
    window: int = 0
    extra_patches: int = 0
    """Computed with each ``whole`` and then dropped: the class token."""

    @property
    def head_dim(self) -> int:
        """Numbers per head."""
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Numbers in all matrices."""
        layer = 4 * self.hidden**2 + (3 if self.is_gated else 2) * self.hidden * self.inner
        ends = self.patch_numbers * self.hidden + sum(
            rows * columns for rows, columns in self.projector
        )
        return self.layers * layer + ends


class Shape(msgspec.Struct, frozen=True):
    """A model: its decoder and, where it sees, its encoder."""

    config: str
    """Whose config.json the sizes are from."""
    language: Language
    vision: Vision | None = None


def _qwen_vision(inner: int, out: int) -> Vision:
    """Windows of 112 x 112 pixels are 8 x 8 patches; layers 7, 15, 23 and 31 attend to all."""
    return Vision(
        layers=32, full_layers=4, hidden=1280, heads=16, inner=inner, is_gated=True,
        patches=4, window=64, patch_numbers=3 * 2 * 14 * 14,
        projector=((5120, 5120), (5120, out)),
    )  # fmt: skip


SHAPES = {
    "qwen2.5-vl-7b": Shape(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        Language(layers=28, hidden=3584, heads=28, kv_heads=4, inner=18944, vocabulary=152064),
        _qwen_vision(3420, 3584),
    ),
    "qwen2.5-vl-32b": Shape(
        "Qwen/Qwen2.5-VL-32B-Instruct",
        Language(layers=64, hidden=5120, heads=40, kv_heads=8, inner=27648, vocabulary=152064),
        _qwen_vision(3456, 5120),
    ),
    "qwen2.5-vl-72b": Shape(
        "Qwen/Qwen2.5-VL-72B-Instruct",
        Language(layers=80, hidden=8192, heads=64, kv_heads=8, inner=29568, vocabulary=152064),
        _qwen_vision(3456, 8192),
    ),
    "llava-1.5-7b": Shape(
        "llava-hf/llava-1.5-7b-hf, openai/clip-vit-large-patch14-336 (its last layer is not used)",
        Language(layers=32, hidden=4096, heads=32, kv_heads=32, inner=11008, vocabulary=32064),
        Vision(
            layers=23, full_layers=23, hidden=1024, heads=16, inner=4096, patches=1, whole=576,
            extra_patches=1, projector=((1024, 4096), (4096, 4096)),
        ),
    ),
    "internvl2-8b": Shape(
        "OpenGVLab/InternVL2-8B (InternViT-300M-448px, internlm2_5-7b-chat)",
        Language(layers=32, hidden=4096, heads=32, kv_heads=8, inner=14336, vocabulary=92553),
        Vision(
            layers=24, full_layers=24, hidden=1024, heads=16, inner=4096, patches=4, whole=1024,
            extra_patches=1, projector=((4096, 4096), (4096, 4096)),
        ),
    ),
    "internvl2-26b": Shape(
        "OpenGVLab/InternVL2-26B (InternViT-6B-448px-V1-5, internlm2-chat-20b)",
        Language(layers=48, hidden=6144, heads=48, kv_heads=8, inner=16384, vocabulary=92553),
        Vision(
            layers=45, full_layers=45, hidden=3200, heads=25, inner=12800, patches=4, whole=1024,
            extra_patches=1, projector=((12800, 6144), (6144, 6144)),
        ),
    ),
    # Its resampler's keys and values, 7 % of the encoder's products, are left out.
    "minicpm-v-2.6": Shape(
        "openbmb/MiniCPM-V-2_6 (SigLIP-So400M at 448 px a slice, 64 queries each; Qwen2-7B)",
        Language(layers=28, hidden=3584, heads=28, kv_heads=4, inner=18944, vocabulary=151666),
        Vision(
            layers=27, full_layers=27, hidden=1152, heads=16, inner=4304, patches=16, whole=1024,
            projector=((1152, 3584), (3584, 3584)),
        ),
    ),
    "opt-13b": Shape(
        "facebook/opt-13b",
        Language(
            layers=40, hidden=5120, heads=40, kv_heads=40, inner=20480, vocabulary=50272,
            is_gated=False, is_tied=True,
        ),
    ),
    "opt-66b": Shape(
        "facebook/opt-66b",
        Language(
            layers=64, hidden=9216, heads=72, kv_heads=72, inner=36864, vocabulary=50272,
            is_gated=False, is_tied=True,
        ),
    ),
}  # fmt: skip
"""By the name used in the registry."""
