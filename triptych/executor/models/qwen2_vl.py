"""Qwen2-VL (arXiv 2409.12191): what is its own beside the shared decoder and tower."""

from triptych.core.errors import ConfigError
from triptych.executor.models.config import (
    ModelSpec,
    Section,
    VisionSpec,
    read_patches,
    read_text,
)


def read_spec(root: Section) -> ModelSpec:
    """Values of a ``config.json``. Its tower has layer norms, a plain MLP and no windows."""
    vision = root.section("vision_config")
    text = read_text(root)
    width = vision.count("embed_dim", 1280)
    out_size = vision.count("hidden_size", text.hidden_size)
    if out_size != text.hidden_size:
        raise ConfigError(
            f"{vision.where('hidden_size')}: {out_size} is not the decoder's {text.hidden_size}"
        )
    tower = VisionSpec(
        **read_patches(vision),
        hidden_size=width,
        intermediate_size=int(width * vision.get("mlp_ratio", float, 4.0)),
        out_size=out_size,
        norm="layer",
        mlp="plain",
        activation=vision.one_of("hidden_act", ("quick_gelu", "gelu", "silu"), "quick_gelu"),
    )
    return ModelSpec("qwen2_vl", text, tower)
