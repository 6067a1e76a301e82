"""The view of all instances, kept from one decision to the next.

Knows which instance changed, not how: who asks says what an instance looks like.
"""

from collections.abc import Callable

from triptych.core.ids import InstanceId
from triptych.core.view import ClusterView, InstanceView


class Views:
    """Made anew only where something changed: with a thousand instances most are the same objects
    from one decision to the next."""

    def __init__(self) -> None:
        self._members: ClusterView | None = None
        self._bases: dict[InstanceId, tuple[int, InstanceView]] = {}
        """Places in ``_views``, and what the cluster says."""
        self._views: list[InstanceView] = []
        self._touched: set[InstanceId] = set()
        self._whole = ClusterView(())

    def touch(self, instance: InstanceId) -> None:
        """The instance's load changed."""
        self._touched.add(instance)

    def forget(self) -> None:
        """Who is in the view, or in which state, may have changed."""
        self._members = None

    def view(
        self, members: ClusterView, seen: Callable[[InstanceView], InstanceView | None]
    ) -> ClusterView:
        """``members`` as ``seen``, without those that are not."""
        if members is not self._members:
            self._bases, self._views = {}, []
            for base in members.instances:
                if (view := seen(base)) is not None:
                    self._bases[base.description.id] = len(self._views), base
                    self._views.append(view)
        elif self._touched:
            for instance in self._touched & self._bases.keys():
                place, base = self._bases[instance]
                if (view := seen(base)) is not None:
                    self._views[place] = view
        else:
            return self._whole
        self._members, self._whole = members, ClusterView(tuple(self._views))
        self._touched.clear()
        return self._whole
