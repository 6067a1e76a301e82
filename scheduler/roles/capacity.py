"""Tokens per second that one instance serves of each stage, from what steps cost.

Takes the mean request and a bound; knows no queue and no instance.
"""

from collections.abc import Mapping

import msgspec

from scheduler.costs import Costs
from scheduler.planner.demand import Shape, cut
from triptych.core.lifecycle import Stage


class Typical(msgspec.Struct, frozen=True):
    """The mean of recent requests. Tokens; 0 where there are none."""

    picture: int = 0
    """Visual tokens of a picture."""
    prompt: int = 0
    """To be computed, visual ones included."""
    output: int = 0
    tpot_s: float = 0.05
    """Bound on the gap between two tokens."""


def capacities(
    costs: Costs, typical: Typical, chunk_tokens: int, max_decodes: int
) -> Mapping[Stage, float]:
    """Per stage, of an instance that does nothing else: pictures one by one, prompts in chunks,
    decode in the largest batch whose step keeps the bound. No stage that nothing is known of."""
    found: dict[Stage, float] = {}
    if typical.picture:
        found[Stage.ENCODE] = typical.picture / costs.vision_s((typical.picture,))
    if typical.prompt:
        chunks = cut(Shape((), typical.prompt, 1), chunk_tokens)
        seconds = sum(costs.language_s((chunk,), 0, 0) for chunk in chunks)
        found[Stage.PREFILL] = typical.prompt / seconds
        context = typical.prompt + typical.output // 2
        batch = _largest(costs, context, typical.tpot_s, max_decodes)
        found[Stage.DECODE] = batch / costs.language_s((), batch, batch * context)
    return found


def _largest(costs: Costs, context: int, tpot_s: float, most: int) -> int:
    """Sequences whose common step takes at most ``tpot_s``; at least one."""
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        if costs.language_s((), middle, middle * context) <= tpot_s:
            low = middle
        else:
            high = middle - 1
    return low
