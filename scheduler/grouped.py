"""Placement within modality groups that a policy of roles makes, around any other placement.

After ElasticMM (arXiv 2507.10069, section 3.1). Knows which place is of which group now; chooses
nothing itself.
"""

from collections.abc import Mapping

from scheduler.placement import ANYTHING, NOTHING, Ask, Placement
from scheduler.roles.elasticmm import MULTIMODAL, TEXT
from triptych.core.errors import Unavailable
from triptych.core.ids import InstanceId
from triptych.core.request import Prompt
from triptych.core.view import ClusterView, Coverage, Route


class Grouped:
    """A request goes to its own group and to instances of none; elsewhere only while the group
    lacks a stage. ``groups`` (by place) may change at any time; while empty, nothing is grouped."""

    def __init__(self, inner: Placement, groups: Mapping[str, str]) -> None:
        self._inner = inner
        self._groups = groups

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,
        ask: Ask = ANYTHING,
    ) -> Route:
        """See ``Placement``."""
        if self._groups:
            group = MULTIMODAL if prompt.items else TEXT
            own = tuple(
                each
                for each in view.instances
                if self._groups.get(each.description.id.partition("@")[0], group) == group
            )
            try:
                return self._inner.choose(ClusterView(own), prompt, avoid, coverage, ask)
            except Unavailable:
                pass  # the group lacks a stage just now
        return self._inner.choose(view, prompt, avoid, coverage, ask)
