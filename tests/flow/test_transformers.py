"""Through every topology and chunk size: token for token what Transformers' ``generate`` says.

Four checkpoints, 36 prompts each, of which the monolith answers all and every other topology a
third (all of them in the full product): text only, one to five pictures of odd sizes, pictures
between sentences. Greedy, float32. Transformers gets its inputs from its own tokenizer and its own
picture processor, so the doors' side of the path is judged too.
"""

import asyncio
import io
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests import checkpoints
from tests.flow.drawn import picture, words
from tests.flow.harness import config, flow
from triptych.core.request import Picture

TOPOLOGIES = ("EPD1", "E1,P1,D1", "EP1,D1", "E1,PD1", "ED1,P1", "E2,P2,D2")
CHUNKS = (16, 37, 4096)
NUM_PROMPTS = 36
NUM_TOKENS = 10

Parts = list[str | Picture]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow-checkpoints")
    made = {kind: checkpoints.write(kind, root / kind) for kind in checkpoints.KINDS}
    return {**made, "demo": checkpoints.DEMO}


def prompts() -> list[Parts]:
    """The prompts, the same for every model."""
    rng = random.Random(60)
    found: list[Parts] = []
    for index in range(NUM_PROMPTS):
        one: Parts = []
        for _ in range(index % 6):
            one += [words(rng, 1, 6)] if rng.random() < 0.6 else []
            one.append(picture(rng, 20, 150))
        found.append([*one, words(rng, 2, 25)])
    return found


@cache
def judged(folder: Path) -> list[list[int]]:
    """What Transformers answers to each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return [judge(folder, tokenizer, processor, parts) for parts in prompts()]


def judge(folder: Path, tokenizer, processor, parts: Parts) -> list[int]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in parts
    ]
    if len(content) == 1:
        content = content[0]["text"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    images = [Image.open(io.BytesIO(part.data)) for part in parts if isinstance(part, Picture)]
    inputs = dict(processor(images=images, return_tensors="pt")) if images else {}
    for grid in inputs.get("image_grid_thw", ()):
        text = text.replace("<|image_pad|>", "<|pad|>" * (int(grid.prod()) // 4), 1)
    ids = tokenizer(text.replace("<|pad|>", "<|image_pad|>"), return_tensors="pt").input_ids
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    with torch.no_grad():
        output = checkpoints.judge(folder).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == pad).long(),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            **inputs,
        )
    return output[0, ids.shape[1] :].tolist()


def params() -> list[object]:
    """The full product with all prompts. Every run has each model in each topology, each with each
    size of chunk; beside the monolith with a third of the prompts."""
    found = []
    for i, model in enumerate([*checkpoints.KINDS, "demo"]):
        for j, topology in enumerate(TOPOLOGIES):
            for k, chunk in enumerate(CHUNKS):
                is_run = (i + j) % len(CHUNKS) == k
                if is_run and j:
                    marks = [pytest.mark.slow]
                    found.append(pytest.param(model, topology, chunk, False, marks=marks))
                marks = [pytest.mark.slow] + ([] if is_run and not j else [pytest.mark.matrix])
                found.append(pytest.param(model, topology, chunk, True, marks=marks))
    return found


@pytest.mark.parametrize(("model", "topology", "chunk", "is_whole"), params())
async def test_same_tokens(
    model: str, topology: str, chunk: int, is_whole: bool, folders: dict[str, Path]
) -> None:
    turn = TOPOLOGIES.index(topology)
    asked = [n for n in range(NUM_PROMPTS) if is_whole or n // 6 % 3 == turn % 3]
    expected, every = judged(folders[model]), prompts()
    settings = config(
        topology,
        'model.dtype="float32"',
        f"engine.chunk_tokens={chunk}",
        f"engine.token_budget={max(256, chunk)}",
        model=str(folders[model]),
    )
    async with flow(settings) as running:
        room = asyncio.Semaphore(16)

        async def one(parts: Parts) -> list[int]:
            async with room:
                return await running.tokens(running.request(parts, max_tokens=NUM_TOKENS))

        found = await asyncio.gather(*(one(every[index]) for index in asked))
    wrong = [index for index, tokens in zip(asked, found, strict=True) if tokens != expected[index]]
    assert not wrong, f"{model} {topology} chunk {chunk}: prompts {wrong} differ"
