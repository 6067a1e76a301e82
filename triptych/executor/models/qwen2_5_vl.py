"""Qwen2.5-VL (arXiv 2502.13923): what is its own beside the shared decoder and tower."""

from triptych.core.errors import ConfigError
from triptych.executor.models.config import (
    ModelSpec,
    Section,
    VisionSpec,
    read_patches,
    read_text,
)


def read_spec(root: Section) -> ModelSpec:
    """Values of a ``config.json``. Its tower has RMS norms, a gated MLP and windows in all blocks
    but ``fullatt_block_indexes``."""
    vision = root.section("vision_config")
    text = read_text(root)
    patches = read_patches(vision)
    out_size = vision.count("out_hidden_size", text.hidden_size)
    if out_size != text.hidden_size:
        raise ConfigError(
            f"{vision.where('out_hidden_size')}: {out_size} is not the decoder's {text.hidden_size}"
        )
    window = vision.count("window_size", 112) // patches["merge_size"] // patches["patch_size"]
    if window < 1:
        raise ConfigError(f"{vision.where('window_size')}: smaller than one merged patch")
    tower = VisionSpec(
        **patches,
        hidden_size=vision.count("hidden_size"),
        intermediate_size=vision.count("intermediate_size"),
        out_size=out_size,
        norm="rms",
        mlp="gated",
        activation=vision.one_of("hidden_act", ("silu", "gelu", "quick_gelu"), "silu"),
        window_patches=window,
        full_blocks=vision.integers("fullatt_block_indexes"),
    )
    return ModelSpec("qwen2_5_vl", text, tower)
