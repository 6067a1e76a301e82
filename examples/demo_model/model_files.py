"""The demo model's architecture, tokenizer and Hugging Face folder layout.

Knows the sizes of the network, how the tokenizer is trained and which files a
checkpoint folder holds. Does not know scenes beyond their texts, nor training.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from questions import FAMILIES, ask, draw_pictures
from safetensors.torch import save_file
from scenes import BACKGROUNDS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM_PROMPT = "You are a helpful assistant."
VOCABULARY = 768
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Words that no question uses yet, so that near misses still cost few tokens.
OTHER_WORDS = (
    "yes no zero one two three four five six seven eight nine ten nothing the first second third"
    " bigger smaller larger left of right above below next to than which who when why do does not"
    " text word letter line big small large size near far corner centre center side object objects"
    " image images photo show shows see look tell me about please read answer briefly short long"
    " pink brown cyan rectangle diamond heart arrow and or with without any all both same different"
    " Answer Reply Be brief in one word Please Tell me Is Are How much Thank you Thanks It it they"
)
# As published, but a message's pictures come before its text: that order was trained.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% endif %}{% endfor %}"
    "{% for content in message['content'] %}"
    "{% if 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus(seed: int, scenes: int) -> list[str]:
    """Question and answer texts from many scenes, for training the tokenizer."""
    rng = random.Random(seed)
    texts: list[str] = list(BACKGROUNDS)
    for family in FAMILIES:
        for _ in range(scenes):
            pictures = draw_pictures(family, rng, ((112, 112), (112, 112)), digits=(1, 1, 2, 3))
            for example in ask(family, pictures, rng, 6):
                texts += [example.question, example.answer]
    return texts


def train_tokenizer() -> Tokenizer:
    """Train the byte-level BPE tokenizer on the drawn corpus; the same texts give the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = corpus(seed=1, scenes=1500) + [SYSTEM_PROMPT, "system\nuser\nassistant\n"] * 50
    texts += [OTHER_WORDS] * 20
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def published_config(tokenizer: Tokenizer) -> dict[str, object]:
    """The demo's architecture in the flat layout of the published Qwen2.5-VL configurations."""
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 4096,
        "max_window_layers": 4,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 100.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 7, 7]},
        "sliding_window": 4096,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 4,
            "hidden_act": "silu",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "in_channels": 3,
            "in_chans": 3,
            "out_hidden_size": 192,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
    }


def new_model(tokenizer: Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised demo model, in float32."""
    config = Qwen2_5_VLConfig(**published_config(tokenizer))
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            continue
        fan_in = parameter[0].numel()
        deep = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight"))
        scale = 0.03 if "embed_tokens" in name else fan_in**-0.5 * (0.4 if deep else 0.9)
        torch.nn.init.normal_(parameter, std=scale)
    return model


def demo_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer, else the committed one, else one trained anew."""
    for path in (folder / "tokenizer.json", Path(__file__).parent / "tokenizer.json"):
        if path.exists():
            return Tokenizer.from_file(str(path))
    return train_tokenizer()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_weights(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write the weights as bfloat16, with the published names; the tied head is left out."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        published = name.replace("model.language_model.", "model.").replace(
            "model.visual.", "visual."
        )
        state[published] = tensor.detach().to(torch.bfloat16).contiguous()
    partial = folder / "model.safetensors.partial"
    save_file(state, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(folder / "model.safetensors")


def write_folder(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write the whole Hugging Face folder: weights, config, tokenizer, template, preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = demo_tokenizer(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", published_config(tokenizer))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "chat_template": CHAT_TEMPLATE,
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "min_pixels": 112 * 112,
            "max_pixels": 448 * 448,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": False,
            "max_new_tokens": 64,
        },
    )
    write_weights(model, folder)
