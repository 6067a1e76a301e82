"""How much one step may take so that it stays within the SLO: budgets found by search.

TriInfer (arXiv 2505.12658): at start-up, by binary search over predicted times of steps.
Knows costs and limits; no queue. Costs grow with the work, as real steps do but for noise.
"""

from collections.abc import Callable
from math import inf

import msgspec

from scheduler.costs import Costs
from triptych.core.config import CacheConfig, EngineConfig
from triptych.core.lifecycle import Role, Stage
from triptych.core.request import Slo

ALPHA = 0.5
"""Of the bound on TTFT, what one step of an instance without decodes may take."""
MARGIN = 0.2
"""Of the bound on TPOT, what is left free beside a step with decodes: 10 ms of 50 ms."""
MOST_TOKENS = 65_536
"""Beyond any step that helps."""
PICTURE_TOKENS = 256
"""Visual tokens of the pictures that a step is thought to encode."""
SATURATED = 0.95
"""Of the best rate there is, where more pictures at once are not worth waiting for."""


def step_limit_s(role: Role, slo: Slo) -> float:
    """Longest step of an instance of ``role``; infinite without a bound."""
    bound_s, share = (slo.tpot_s, 1.0 - MARGIN) if Stage.DECODE in role else (slo.ttft_s, ALPHA)
    return inf if bound_s is None else share * bound_s


def token_budget(costs: Costs, limit_s: float, num_decodes: int = 0, context: int = 0) -> int:
    """Most tokens whose step stays within ``limit_s``: one of each of ``num_decodes`` sequences
    with ``context`` cached tokens in all, and a chunk. 0 if the decodes alone do not."""

    def fits(length: int) -> bool:
        return costs.language_s(((0, length),) if length else (), num_decodes, context) <= limit_s

    return num_decodes + largest(fits, MOST_TOKENS) if fits(0) else 0


def image_budget(costs: Costs, limit_s: float) -> int:
    """Most visual tokens whose step stays within ``limit_s`` and is not beyond saturation; 0 if
    not one does."""
    return min(
        largest(lambda count: costs.vision_s(_pictures(count)) <= limit_s, MOST_TOKENS),
        saturation(costs),
    )


def saturation(costs: Costs) -> int:
    """Fewest visual tokens, in whole pictures, that are encoded at nearly the best rate (TriInfer
    found about six pictures of LLaVA-1.5; RServe, arXiv 2509.24381, batches up to there)."""

    def rate(num_pictures: int) -> float:
        seconds = costs.vision_s((PICTURE_TOKENS,) * num_pictures)
        return num_pictures / seconds if seconds > 0.0 else inf

    most = MOST_TOKENS // PICTURE_TOKENS
    best = max(rate(2**exponent) for exponent in range(most.bit_length()))
    below = largest(lambda count: count == 0 or rate(count) < SATURATED * best, most)
    return PICTURE_TOKENS * min(below + 1, most)


def settled(
    engine: EngineConfig, cache: CacheConfig, role: Role, slo: Slo, costs: Costs | None
) -> EngineConfig:
    """``engine`` with budgets where it has 0: found by ``costs``, or the defaults without.

    An instance that decodes is thought half full: half its places taken, half its cache read. A
    chunk beside a token of every sequence fits in any case, and so does one picture alone.
    """
    tokens, images = engine.token_budget, engine.image_budget_tokens
    limit_s, can_decode = step_limit_s(role, slo), Stage.DECODE in role
    if not tokens and costs is None:
        tokens = max(EngineConfig().token_budget, engine.chunk_tokens)
    elif not tokens and costs is not None:
        decodes = engine.max_sequences // 2 if can_decode else 0
        context = cache.kv_blocks * cache.block_size // 2 if can_decode else 0
        least = engine.chunk_tokens + (engine.max_sequences if can_decode else 0)
        tokens = max(token_budget(costs, limit_s, decodes, context), least)
    if not images:
        usual = EngineConfig().image_budget_tokens
        images = usual if costs is None else max(1, image_budget(costs, limit_s))
    return msgspec.structs.replace(engine, token_budget=tokens, image_budget_tokens=images)


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` for which ``holds``, which holds up to some number and not
    beyond it; 0 if for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _pictures(num_tokens: int) -> tuple[int, ...]:
    whole, rest = divmod(num_tokens, PICTURE_TOKENS)
    return (PICTURE_TOKENS,) * whole + ((rest,) if rest else ())
