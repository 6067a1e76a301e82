"""Write a random Qwen2.5-VL of four layers: ``python -m examples.small_checkpoint runs/small``.

4 text layers of 256 (4 heads of 64, 2 KV heads), a tower of 4 layers of 128, 4.3 million numbers:
on it a server's own cost is seen, beside any other server that loads a Hugging Face folder.
Tokenizer and template are the demo model's; the head never says one of the control tokens, so every
answer has the length that was asked for. With ``--words`` it says whole words only, so that a
client that is told text and no ids sees every token.
"""

import argparse
import json
import re
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

WORD = re.compile("\u0120[A-Za-z]+")
"""As the tokenizer's file spells a word behind a blank."""


def config(positions: int = 4096) -> Any:
    """The architecture, with the demo model's vocabulary, for prompts of up to ``positions``."""
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
        "max_position_embeddings": positions,
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


def unsaid(chosen: Any, *, words: bool) -> list[int]:
    """Tokens that the head must not say: those of control, or all but whole words."""
    if words:
        known = json.loads((DEMO / "tokenizer.json").read_text())["model"]["vocab"]
        said = {number for text, number in known.items() if WORD.fullmatch(text)}
        return [
            number for number in range(chosen.get_text_config().vocab_size) if number not in said
        ]
    first_control = min(
        value for key, value in chosen.get_text_config().to_dict().items()
        if key.endswith("token_id") and isinstance(value, int)
    )  # fmt: skip
    return list(range(first_control, chosen.get_text_config().vocab_size))


def write(folder: Path, seed: int = 1, *, words: bool = False, positions: int = 4096) -> Path:
    """The checkpoint; the same weights for a seed."""
    torch.manual_seed(seed)
    chosen = config(positions)
    model: Any = Qwen2_5_VLForConditionalGeneration(chosen)
    model = model.float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Wide enough that greedy answers depend on the picture.
                spread = 0.3 if "embed_tokens" in name else 1.3 * parameter[0].numel() ** -0.5
                parameter.copy_(spread * torch.randn_like(parameter))
        model.lm_head.weight[unsaid(chosen, words=words)] = 0
    model.save_pretrained(folder)
    for name in COPIED:
        shutil.copy(DEMO / name, folder / name)
    return folder


def main() -> None:
    """Write it and say where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--words", action="store_true", help="answers of whole words only")
    parser.add_argument("--positions", type=int, default=4096, help="of the longest prompt")
    given = parser.parse_args()
    made = write(given.folder, words=given.words, positions=given.positions)
    print(f"written: {made}")


if __name__ == "__main__":
    main()
