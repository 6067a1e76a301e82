"""The configurations of published checkpoints, as they are and as Transformers rewrites them."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

from triptych.core.errors import ConfigError
from triptych.executor.models.config import Section, read
from triptych.executor.models.registry import read_spec

TEXT_7B = {
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
QWEN2_VL: dict[str, Any] = {
    **TEXT_7B,
    "model_type": "qwen2_vl",
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}
QWEN2_5_VL: dict[str, Any] = {
    **TEXT_7B,
    "model_type": "qwen2_5_vl",
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}


def spec(values: dict[str, Any]):
    return read_spec(Section(values, "config.json: "))


def test_qwen2_vl_7b():
    model = spec(QWEN2_VL)
    assert (model.text.num_layers, model.text.num_kv_heads, model.text.head_dim) == (28, 4, 128)
    assert (model.text.rope_theta, model.text.rope_sections) == (1e6, (16, 24, 24))
    assert not model.text.is_tied
    tower = model.vision
    assert (tower.hidden_size, tower.intermediate_size, tower.out_size) == (1280, 5120, 3584)
    assert (tower.norm, tower.mlp, tower.activation) == ("layer", "plain", "quick_gelu")
    assert (tower.window_patches, tower.patch_values) == (0, 1176)


def test_qwen2_5_vl_7b():
    tower = spec(QWEN2_5_VL).vision
    assert (tower.hidden_size, tower.intermediate_size, tower.out_size) == (1280, 3420, 3584)
    assert (tower.norm, tower.mlp, tower.activation) == ("rms", "gated", "silu")
    assert (tower.window_patches, tower.full_blocks) == (4, (7, 15, 23, 31))


@pytest.mark.parametrize(
    ("family", "values"), [(Qwen2VLConfig, QWEN2_VL), (Qwen2_5_VLConfig, QWEN2_5_VL)]
)
def test_what_transformers_writes_says_the_same(tmp_path: Path, family, values):
    family(**json.loads(json.dumps(values))).save_pretrained(tmp_path)
    root = read(tmp_path)
    assert "text_config" in root
    assert "rope_parameters" in root.section("text_config")
    assert read_spec(root) == spec(values)


def test_the_older_nested_spelling():
    """Transformers 4.5x: nested, with ``rope_scaling`` of both keys and the tie inside."""
    inner = {**TEXT_7B, "tie_word_embeddings": True}
    inner["rope_scaling"] = {
        "rope_type": "default",
        "type": "default",
        "mrope_section": [16, 24, 24],
    }
    values = {
        "model_type": "qwen2_vl",
        "text_config": inner,
        "vision_config": QWEN2_VL["vision_config"],
    }
    flat = spec(QWEN2_VL)
    assert spec(values) == msgspec.structs.replace(
        flat, text=msgspec.structs.replace(flat.text, is_tied=True)
    )


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_files_that_are_no_objects(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json: not"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "nowhere")
