"""Where a prompt is cut, and which pieces of work make a step.

Chunked prefill beside decodes under one budget after Sarathi-Serve (OSDI 2024, section 4.2), with
one difference: the cuts come from the prompt alone, and a step with less room takes fewer pieces.
"""

from collections.abc import Sequence

from triptych.core.request import Prompt
from triptych.engine.policies import Budget, Work

PATIENCE = 4
"""Steps that prefill is passed over, where decodes leave too little room, before it goes first."""


def boundaries_from_prompt(prompt: Prompt, chunk_tokens: int) -> tuple[int, ...]:
    """Ends of the chunks: multiples of ``chunk_tokens``, both borders of each item, the end."""
    cuts = set(range(chunk_tokens, len(prompt), chunk_tokens))
    for item in prompt.items:
        cuts.update((item.offset, item.end))
    cuts.discard(0)
    return tuple(sorted(cuts | {len(prompt)}))


def decode_first(ready: Sequence[Work], budget: Budget) -> list[int]:
    """Every decode, oldest first, then whole chunks in order of arrival until one does not fit.

    After ``PATIENCE`` steps without any chunk, the oldest chunk goes before the decodes. A piece
    larger than the whole budget is taken alone. Decodes come first in the step in any case.
    """
    arrivals = sorted(range(len(ready)), key=lambda i: (ready[i].arrival, ready[i].start))
    decodes = [index for index in arrivals if ready[index].is_decode]
    chunks = [index for index in arrivals if not ready[index].is_decode]
    if budget.passed_over >= PATIENCE:
        queue = chunks[:1] + decodes + chunks[1:]
    else:
        queue = decodes + chunks
    chosen: list[int] = []
    left = budget.tokens
    for index in queue:
        size = ready[index].end - ready[index].start
        if len(chosen) == budget.pieces or (size > left and chosen):
            break
        chosen.append(index)
        left -= size
    order = {index: place for place, index in enumerate(decodes + chunks)}
    return sorted(chosen, key=order.__getitem__)
