"""Who is where: the instances that serve now, what they said of themselves, how to reach them.

Knows connections and states; counts no load (that is each router's own knowledge) and starts
nothing.
"""

import logging
from collections.abc import Callable

from triptych.core.ids import InstanceId
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.ports import Instance
from triptych.core.view import ClusterView, Description, InstanceView

log = logging.getLogger(__name__)


class _Entry:
    """One instance: its view, rebuilt only when its state changes, and the connection to it."""

    def __init__(self, description: Description, instance: Instance) -> None:
        self.instance = instance
        self.view = InstanceView(
            description=description,
            state=InstanceState.READY,
            num_jobs={stage.value: 0 for stage in Stage},
            num_tokens={stage.value: 0 for stage in Stage},
        )


class Directory:
    """Instances by id, in order of joining."""

    def __init__(self) -> None:
        self._entries: dict[InstanceId, _Entry] = {}
        self._listeners: list[Callable[[], None]] = []
        self._view: ClusterView | None = None

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after every change of members or states."""
        self._listeners.append(listener)

    def view(self) -> ClusterView:
        """All instances, sorted by id so that equal memberships give equal views. The same object
        until something changes."""
        if self._view is None:
            views = tuple(self._entries[id_].view for id_ in sorted(self._entries))
            self._view = ClusterView(views)
        return self._view

    def instance(self, instance: InstanceId) -> Instance:
        """The connection to an instance; KeyError when it left."""
        return self._entries[instance].instance

    def instances(self) -> tuple[Instance, ...]:
        """Connections to all of them."""
        return tuple(entry.instance for entry in self._entries.values())

    def join(self, description: Description, instance: Instance) -> None:
        """A new incarnation serves."""
        self._entries[description.id] = _Entry(description, instance)
        self._tell()

    def drain(self, instance: InstanceId) -> None:
        """It takes no new work."""
        entry = self._entries.get(instance)
        if entry is not None:
            before = entry.view
            entry.view = InstanceView(
                before.description, InstanceState.DRAINING, before.num_jobs, before.num_tokens
            )
            self._tell()

    def leave(self, instance: InstanceId) -> None:
        """It is gone."""
        if self._entries.pop(instance, None) is not None:
            self._tell()

    def _tell(self) -> None:
        self._view = None
        for listener in self._listeners:
            listener()
