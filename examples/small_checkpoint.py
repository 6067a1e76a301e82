"""Write a random Qwen2.5-VL of four layers: ``python -m examples.small_checkpoint runs/small``.

4 text layers of 256 (4 heads of 64, 2 KV heads), a tower of 4 layers of 128, 4.3 million numbers:
on it a server's own cost is seen, beside any other server that loads a Hugging Face folder.
Tokenizer and template are the demo model's; the head never says one of the control tokens, so every
answer has the length that was asked for.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

DEMO = Path(__file__).parent / "demo_model"
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "generation_config.json",
)


def config() -> Any:
    """The architecture, with the demo model's vocabulary."""
    demo = json.loads((DEMO / "config.json").read_text())
    ids = {key: value for key, value in demo.items() if key.endswith("token_id")}
    flat: dict[str, Any] = {
        **ids,
        "vocab_size": demo["vocab_size"],
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vision_config": {
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 256,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "spatial_patch_size": 14,
        },
    }
    return Qwen2_5_VLConfig(**flat)


def write(folder: Path, seed: int = 1) -> Path:
    """The checkpoint; the same bytes for a seed."""
    torch.manual_seed(seed)
    chosen = config()
    model: Any = Qwen2_5_VLForConditionalGeneration(chosen)
    model = model.float().eval()
    first_control = min(
        value for key, value in chosen.get_text_config().to_dict().items()
        if key.endswith("token_id") and isinstance(value, int)
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Wide enough that greedy answers depend on the picture.
                spread = 0.3 if "embed_tokens" in name else 1.3 * parameter[0].numel() ** -0.5
                parameter.copy_(spread * torch.randn_like(parameter))
        model.lm_head.weight[first_control:] = 0
    model.save_pretrained(folder)
    for name in COPIED:
        shutil.copy(DEMO / name, folder / name)
    return folder


def main() -> None:
    """Write it and say where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(f"written: {write(folder)}")


if __name__ == "__main__":
    main()
