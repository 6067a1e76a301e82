"""Transformers at the same sizes: its own class, random weights, SDPA attention, no server.

What ``generate`` would run, token for token: eager, over a cache that grows by concatenation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cli.gpu import work
from cli.gpu.groups import Case, Group, Measure
from cli.gpu.kit import Setup
from cli.gpu.rows import Found
from cli.gpu.sizes import Sizes
from cli.gpu.whole import decode_name, prefill_name
from triptych.executor.models.config import ModelSpec

NAME = "Transformers"


def group(sizes: Sizes) -> Group:
    """Rows of the names of ours."""
    cases = [Case(prefill_name(one), one, 15.0) for one in sizes.peer_prefills]
    cases += [Case(decode_name(*one), one, 8.0) for one in sizes.peer_decodes]
    return Group(NAME, cases, peer)


@contextmanager
def peer(setup: Setup) -> Iterator[Measure]:
    """One model for all cases. Raises ImportError where Transformers is missing."""
    text, model = setup.sizes.spec.text, _model(setup)

    def measure(what: Any) -> Found:
        if isinstance(what, int):
            ids = torch.randint(text.vocab_size, (1, what), device=setup.device)
            measured = setup.timer(
                lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1), is_step=True
            )
            return Found(measured, work.prefill(text, what, what, setup.item))
        batch, context = what
        step = _step(setup, model, batch, context)
        measured = setup.timer(step, is_step=True)
        return Found(measured, work.decode(text, batch, context, setup.item))

    yield measure


def _step(setup: Setup, model: Any, batch: int, context: int) -> Any:
    """One token of each sequence; the cache is cut back each time."""
    from transformers import DynamicCache

    text, cache = setup.sizes.spec.text, DynamicCache()
    shape = (batch, text.num_kv_heads, context - 1, text.head_dim)
    for layer in range(text.num_layers):
        cache.update(setup.normal(*shape), setup.normal(*shape), layer)
    ids = torch.randint(text.vocab_size, (batch, 1), device=setup.device)
    places = torch.full((3, batch, 1), context - 1, device=setup.device)

    def step() -> None:
        model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def _model(setup: Setup) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(**values(setup.sizes.spec))
    usual = torch.get_default_dtype()
    torch.set_default_dtype(setup.dtype)
    try:
        with torch.device(setup.device):
            kind: Any = Qwen2_5_VLForConditionalGeneration
            made = kind._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(usual)
    return made.eval()


def values(spec: ModelSpec) -> dict[str, Any]:
    """What a ``config.json`` would say of ``spec``."""
    text, vision = spec.text, spec.vision
    rope = {"rope_type": "default", "type": "default", "mrope_section": list(text.rope_sections)}
    side = vision.window_patches * vision.merge_size * vision.patch_size
    return {
        "tie_word_embeddings": text.is_tied,
        "text_config": {
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "max_position_embeddings": 1 << 17,
            "rms_norm_eps": text.norm_eps,
            "rope_theta": text.rope_theta,
            "rope_scaling": rope,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        "vision_config": {
            "depth": vision.depth,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "spatial_merge_size": vision.merge_size,
            "out_hidden_size": vision.out_size,
            "window_size": side,
            "fullatt_block_indexes": list(vision.full_blocks),
            "hidden_act": vision.activation,
        },
        "image_token_id": text.vocab_size - 1,
        "video_token_id": text.vocab_size - 2,
        "vision_start_token_id": text.vocab_size - 3,
        "vision_end_token_id": text.vocab_size - 4,
    }
