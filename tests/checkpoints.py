"""Tiny random checkpoints of real architectures, and Transformers as the judge of what they say.

Weights are spread until greedy output depends on the picture; the head's rows of control tokens are
zero, so nothing stops early. Tokenizer and template are the demo model's.
"""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model"
KINDS = ("qwen2_vl", "qwen2_5_vl", "odd")
"""Qwen2-VL as Transformers writes it; Qwen2.5-VL as it was published, flat; Qwen2.5-VL with other
head counts, windows and sections, untied and in shards."""
WIDE = "wide"
"""Qwen2.5-VL with four KV heads, for more tensor-parallel ranks than the others can have."""

_TEXT: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2_5_vl": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2},
    "odd": {"hidden_size": 140, "num_attention_heads": 7, "num_key_value_heads": 1},
    WIDE: {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4},
}
_SECTIONS = {"qwen2_vl": [2, 3, 3], "qwen2_5_vl": [2, 3, 3], "odd": [4, 3, 3], WIDE: [2, 3, 3]}
_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 48, "num_heads": 3, "mlp_ratio": 2, "depth": 2, "hidden_size": 64},
    "qwen2_5_vl": {
        "hidden_size": 64,
        "num_heads": 4,
        "depth": 3,
        "intermediate_size": 96,
        "out_hidden_size": 96,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
    "odd": {
        "hidden_size": 60,
        "num_heads": 5,
        "depth": 4,
        "intermediate_size": 52,
        "out_hidden_size": 140,
        "window_size": 60,
        "fullatt_block_indexes": [0, 3],
    },
    WIDE: {
        "hidden_size": 32,
        "num_heads": 2,
        "depth": 2,
        "intermediate_size": 40,
        "out_hidden_size": 128,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
}


def write(kind: str, folder: Path) -> Path:
    """Write the checkpoint ``kind`` to ``folder``, in the Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = config_values(kind)
    model = _model(kind, flat)
    if kind == "qwen2_5_vl":
        (folder / "config.json").write_text(json.dumps(flat))
        save_file(_published(model), folder / "model.safetensors")
    else:
        model.save_pretrained(folder, max_shard_size="200KB" if kind == "odd" else "1GB")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "generation_config.json",
    ):
        shutil.copy(DEMO / name, folder / name)
    return folder


def config_values(kind: str) -> dict[str, Any]:
    """The flat, published form of a checkpoint's ``config.json``."""
    demo = json.loads((DEMO / "config.json").read_text())
    ids = {key: value for key, value in demo.items() if key.endswith("token_id")}
    return {
        **ids,
        **_TEXT[kind],
        "model_type": "qwen2_vl" if kind == "qwen2_vl" else "qwen2_5_vl",
        "vocab_size": demo["vocab_size"],
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": _SECTIONS[kind]},
        "tie_word_embeddings": kind != "odd",
        "torch_dtype": "float32",
        "vision_config": {
            **_VISION[kind],
            "model_type": "qwen2_vl" if kind == "qwen2_vl" else "qwen2_5_vl",
            "in_chans": 3,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


@lru_cache(maxsize=8)
def judge(folder: Path) -> Any:
    """Transformers' model of ``folder``, float32; its ``generate`` stops at no token."""
    config = json.loads((folder / "config.json").read_text())
    is_2 = config["model_type"] == "qwen2_vl"
    family = Qwen2VLForConditionalGeneration if is_2 else Qwen2_5_VLForConditionalGeneration
    model = family.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def _model(kind: str, flat: dict[str, Any]) -> Any:
    torch.manual_seed(list(_TEXT).index(kind) + 1)
    if kind == "qwen2_vl":
        model: Any = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**flat))
    else:
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**flat))
    model = model.float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
            else:
                spread = 0.3 if "embed_tokens" in name else 1.3 * parameter[0].numel() ** -0.5
                parameter.copy_(spread * torch.randn_like(parameter))
        head = model.lm_head.weight
        head[min(value for key, value in flat.items() if key.endswith("token_id")) :] = 0
    return model


def _published(model: Any) -> dict[str, torch.Tensor]:
    """Tensors under the names of the published checkpoints, the tied head left out."""
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
