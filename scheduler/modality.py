"""Placement in two groups: instances for text alone, and instances for prompts with pictures.

After ElasticMM (arXiv 2507.10069, section 3): a burst of pictures does not delay text. Here the
groups are fixed by a share of each role; a request goes elsewhere while its own group is
overloaded. Within a group the least loaded pair is taken. Pure.
"""

import math
from collections import defaultdict

from scheduler.placement import ANYTHING, NOTHING, Ask, LeastLoaded, load
from triptych.core.errors import Unavailable
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.request import Prompt
from triptych.core.view import ClusterView, Coverage, InstanceView, Route

SPILL_TOKENS = 8192
"""A group is overloaded while its idlest prefill instance has so many more tokens pending than the
idlest of the other group."""


class Modality:
    """``share`` of the instances of every role that prefill or decode are for prompts with
    pictures, those with the highest ids; a role's only instance is for both kinds."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._inner = LeastLoaded()

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,
        ask: Ask = ANYTHING,
    ) -> Route:
        """See ``Placement``."""
        groups = self._groups(view)
        own, other = groups if not prompt.items else groups[::-1]
        if _idlest(own) <= _idlest(other) + SPILL_TOKENS:
            try:
                return self._inner.choose(own, prompt, avoid, coverage, ask)
            except Unavailable:
                pass  # the group lacks a stage just now
        return self._inner.choose(view, prompt, avoid, coverage, ask)

    def _groups(self, view: ClusterView) -> tuple[ClusterView, ClusterView]:
        """Text, multimodal. Encoders alone are in both; text does not ask them."""
        by_role: dict[tuple[Stage, ...], list[InstanceView]] = defaultdict(list)
        for each in view.instances:
            if each.state is InstanceState.READY:
                by_role[each.description.role].append(each)
        text: list[InstanceView] = []
        pictures: list[InstanceView] = []
        for role, found in by_role.items():
            found.sort(key=lambda each: each.description.id)
            if len(found) == 1 or role == (Stage.ENCODE,):
                text += found
                pictures += found
                continue
            number = min(len(found) - 1, max(1, math.ceil(self._share * len(found))))
            text += found[: len(found) - number]
            pictures += found[len(found) - number :]
        return ClusterView(tuple(text)), ClusterView(tuple(pictures))


def _idlest(group: ClusterView) -> float:
    return min(map(load, group.serving(Stage.PREFILL)), default=math.inf)
