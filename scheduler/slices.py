"""Which slice of a GPU's multiprocessors pictures are encoded on, beside the language model.

SpaceServe (NeurIPS 2025): encoder and language model stay on one GPU and divide it in space, slices
chosen by a cost model, the alternative to instances of their own. The rule is ours: the smallest
slice on which every picture is still in time. Knows ``Costs``; no queue, no device.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import inf

from scheduler.costs import Costs
from triptych.core.plan import ETA, SLICES
from triptych.engine.policies import Beside, Moment, Visual

BANDWIDTH = 0.1
"""By how much a decode step takes longer while another slice computes: memory is not divided."""
PART = 0.5
"""Of their slack, what pictures may spend on a small slice: the rest is for those to come."""
LONGEST_S = 0.25
"""Longest step on a small slice: whoever comes meanwhile waits for its end."""


class Slices:
    """One policy. Times of pictures are those of each alone, which is the most they take."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._vision_s: Callable[[int], float] = lru_cache(4096)(
            lambda num_tokens: costs.vision_s((num_tokens,))
        )

    def split(
        self, step: Sequence[Visual], waiting: Sequence[Visual], beside: Beside, moment: Moment, /
    ) -> float:
        """See ``Split``. All there is if nobody else computes, or if pictures are late on every
        slice and no decode's gap grows beyond its bound by the step."""
        if beside.is_idle:
            return 1.0
        for share in SLICES:
            if self._step_s(step, share) <= LONGEST_S and self._are_in_time(
                (*step, *waiting), share, moment.now_s
            ):
                return share
        decode_s = self._costs.language_s((), beside.num_decodes, beside.context)
        is_short = self._step_s(step, 1.0) + decode_s <= beside.tpot_s
        return 1.0 if is_short else SLICES[-1]

    def _step_s(self, pictures: Iterable[Visual], share: float) -> float:
        return slowed(sum(self._vision_s(picture.num_tokens) for picture in pictures), share)

    def _are_in_time(self, pictures: Iterable[Visual], share: float, now_s: float) -> bool:
        """Whether all of them, one after the other, take their part of the time that the stages
        behind them leave."""
        work_s = 0.0
        for picture in pictures:
            work_s += slowed(self._vision_s(picture.num_tokens), share)
            claim = picture.claim
            due_s = claim.end_s if picture.due_s == inf else picture.due_s
            if work_s > PART * (due_s - claim.later_s - now_s):
                return False
        return True


def slowed(seconds: float, share: float) -> float:
    """Of work that is bounded by arithmetic, on a part of the device that it takes so long on."""
    return seconds * float(share**-ETA)
