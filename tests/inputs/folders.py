"""Model folders without weights, as far as inputs read them."""

import json
import shutil
from pathlib import Path

DEMO = Path("examples/demo_model")
PLAIN_ADDED = ("<tool_call>", "</tool_call>")
"""Added tokens that are not special, as Qwen's tokenizers have them."""


def qwen_like(folder: Path) -> Path:
    """The demo's folder with further added tokens, a template that has its own spaces, newer
    spellings of the configuration, and no separate template file."""
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        shutil.copy(DEMO / name, folder / name)
    tree = json.loads((folder / "tokenizer.json").read_text())
    for index, text in enumerate(PLAIN_ADDED):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tree["added_tokens"].append({"id": 700 + index, "content": text, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    settings = json.loads((DEMO / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{%- set ns = namespace(count=0) %}\n{{- bos_token or '' }}"
        "{%- for message in messages %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' }}\n"
        "    {%- if message.content is string %}{{ message.content | trim }}\n"
        "    {%- else %}{% for part in message.content %}"
        "{% if part.type == 'image' %}{% set ns.count = ns.count + 1 %}"
        "Picture {{ ns.count }}: <|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}\n"
        "    {{- '<|im_end|>\\n' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    processor = json.loads((DEMO / "preprocessor_config.json").read_text())
    size = {
        "shortest_edge": processor.pop("min_pixels"),
        "longest_edge": processor.pop("max_pixels"),
    }
    processor["size"] = size
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    config = json.loads((folder / "config.json").read_text())
    text = {name: config.pop(name) for name in ("vocab_size", "max_position_embeddings")}
    (folder / "config.json").write_text(json.dumps({**config, "text_config": text}))
    return folder
