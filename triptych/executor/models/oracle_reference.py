"""What the oracle must answer, worked out naively: no blocks, no batches, no caches.

Tests of scheduling, transfer, caching and failure compare every token with this.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.core.plan import Draw
from triptych.core.request import Prompt, Sampling, StopRule
from triptych.executor.models.oracle import (
    embedding_rows,
    first_link,
    logits_of,
    next_link,
    token_content,
)
from triptych.executor.sampler import draw


def oracle_reference(
    prompt: Prompt,
    pixels: Sequence[NDArray[np.uint8]],
    sampling: Sampling,
    stop: StopRule,
    salt: bytes = b"",
) -> tuple[int, ...]:
    """The output tokens of one request, the end-of-sequence token included where it was drawn.

    ``pixels`` are the items' resized pictures, one for each of ``prompt.items``. Stop strings are
    not looked at.
    """
    contents = [token_content(token) for token in prompt.token_ids]
    for item, picture in zip(prompt.items, pixels, strict=True):
        rows = embedding_rows(picture, item.num_tokens)
        contents[item.offset : item.end] = [row.tobytes() for row in rows]
    chain, link = bytearray(), first_link(salt)
    for content in contents:
        link = next_link(link, content)
        chain += link
    tokens = list(prompt.token_ids)
    while len(tokens) - len(prompt) < stop.max_tokens:
        one = Draw(sampling, len(tokens), len(prompt), tuple(tokens))
        token = draw(torch.from_numpy(logits_of(bytes(chain)))[None], (one,))[0].token
        tokens.append(token)
        if token in stop.token_ids:
            break
        link = next_link(link, token_content(token))
        chain += link
    return tuple(tokens[len(prompt) :])
