"""What goes wrong in a run, and what somebody does: crashes, slow instances, narrow links, roles.

Carries out a scenario's list at its times and tells the recorder; every change of the cluster's
members is told as well, whoever caused it. Knows places; decides nothing.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cluster.build import Cluster
from cluster.roles import role_of
from simulator.host import SimulatedHost
from simulator.recorder import Recorder, place_of
from triptych.core import topology
from triptych.core.errors import ConfigError, TriptychError
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import InstanceState


class Happening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happens at a point of a run."""

    at_s: Annotated[float, Meta(ge=0)]
    what: Literal["kill", "slow", "role", "link"]
    instance: str = ""
    """Its place: ``prefill-0``. Empty for ``link``: all links between nodes."""
    factor: Annotated[float, Meta(gt=0)] = 2.0
    """``slow``: everything takes so many times longer."""
    share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """``link``: what is left of the bandwidth of the place's port, in and out."""
    for_s: Annotated[float, Meta(ge=0)] = 0.0
    """``slow``, ``link``: for so long; 0: for good."""
    role: str = ""
    """``role``: what it serves from then on."""
    drain_s: float | None = None
    """``role``: how long it may take to end what it has; ``cluster.drain_s`` if not said."""
    systems: tuple[str, ...] = ()
    """Only in these; empty: in all."""

    def check(self, places: Iterable[str]) -> None:
        """Raise ConfigError that names the field."""
        known = list(places)
        if self.instance not in known and (self.what != "link" or self.instance):
            names = ", ".join(known)
            raise ConfigError(f"happenings.instance: {self.instance!r} is not one of {names}")
        if self.what == "role":
            role_of(self.role)


class Happenings:
    """Of one run."""

    def __init__(self, host: SimulatedHost, cluster: Cluster) -> None:
        self._host = host
        self._cluster = cluster
        self._recorder = host.recorder
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, all_of: Sequence[Happening]) -> None:
        """The run begins now. Of equal times, the first in the list happens first."""
        for one in sorted(all_of, key=lambda each: each.at_s):
            self._tasks.append(asyncio.create_task(self._happen(one)))

    async def close(self) -> None:
        """Nothing more happens."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def assign(self, place: str, role: str, drain_s: float | None = None) -> bool:
        """Give a place another role. Whether it has it; else it is told why not."""
        try:
            await self._cluster.assign(place, role_of(role), drain_s)
        except TriptychError as error:
            self._recorder.changed(place, "refused", f"{role}: {error}")
            return False
        return True

    async def _happen(self, one: Happening) -> None:
        await asyncio.sleep(one.at_s)
        match one.what:
            case "kill":
                await self._kill(one.instance)
            case "slow":
                await self._slow(one)
            case "link":
                await self._squeeze(one)
            case "role":
                await self.assign(one.instance, one.role, one.drain_s)

    async def _kill(self, place: str) -> None:
        try:
            await self._cluster.kill(self._present(place))
        except KeyError:
            self._recorder.changed(place, "refused", "kill: it does not run")

    async def _slow(self, one: Happening) -> None:
        interference = self._host.interference
        interference.slow(one.instance, one.factor)
        self._recorder.changed(one.instance, "slowed", f"{one.factor:g} times")
        if one.for_s:
            await asyncio.sleep(one.for_s)
            interference.recover(one.instance, one.factor)
            self._recorder.changed(one.instance, "recovered")

    async def _squeeze(self, one: Happening) -> None:
        fabric, name = self._host.fabric, one.instance or "far links"
        fabric.squeeze(one.instance, one.share)
        self._recorder.changed(name, "slowed", f"link at {one.share:g} of its bandwidth")
        if one.for_s:
            await asyncio.sleep(one.for_s)
            fabric.release(one.instance, one.share)
            self._recorder.changed(name, "recovered", "link")

    def _present(self, place: str) -> InstanceId:
        for view in self._cluster.view().instances:
            if place_of(view.description.id) == place:
                return view.description.id
        raise KeyError(place)


class Census:
    """Tells the recorder of every change of the cluster's members from now on."""

    def __init__(self, cluster: Cluster, recorder: Recorder) -> None:
        self._cluster = cluster
        self._recorder = recorder
        self._known = self._members()
        self._roles = {place: role for place, (_, role, _) in self._known.items()}
        self._is_over = False
        cluster.on_change(self._look)

    def close(self) -> None:
        """What follows is the end of the run."""
        self._is_over = True

    def _members(self) -> dict[str, tuple[InstanceId, str, bool]]:
        """By place: id, role, whether it takes work."""
        return {
            place_of(view.description.id): (
                view.description.id,
                topology.name(frozenset(view.description.role)),
                view.state is InstanceState.READY,
            )
            for view in self._cluster.view().instances
        }

    def _look(self) -> None:
        if self._is_over:
            return
        before, self._known = self._known, self._members()
        for place, (instance, role, is_ready) in self._known.items():
            known = before.get(place)
            if known is not None and known[0] == instance:
                if known[2] and not is_ready:
                    self._recorder.changed(place, "draining")
            elif self._roles[place] != role:
                self._recorder.changed(place, "role", f"{self._roles[place]} -> {role}")
            else:
                self._recorder.changed(place, "started", role)
            self._roles[place] = role
        for place, (_, role, is_ready) in before.items():
            if place not in self._known and is_ready:
                self._recorder.changed(place, "lost", role)
