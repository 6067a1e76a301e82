"""How much slower a place computes than its costs say, at this moment: because it is slow, or
because its GPUs compute for somebody else, too.

Two models of one GPU for several instances: shares of its SMs (SpaceServe's, NeurIPS 2025: compute
in a share ``s`` takes ``s ** -eta`` as long, decode suffers from others' memory traffic), and a
linear matrix of slowdowns by kind of work. Knows places and kinds of work, no instance.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from scheduler.slices import BANDWIDTH, slowed
from triptych.core.errors import ConfigError
from triptych.core.plan import ETA

Share = Annotated[float, Meta(gt=0, le=1)]
WORK = ("encode", "prefill", "decode")
"""Kinds that matter here; a step of chunks and decodes counts as prefill."""
_KIND = {"mixed": "prefill"}


class Colocated(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Places on the same GPUs, which are counted once. Without shares they take turns: what two
    compute at once takes twice as long."""

    places: Annotated[tuple[str, ...], Meta(min_length=2)]
    shares: tuple[Share, ...] = ()
    """Of the SMs, by place, all the time; compute (encode, prefill) is slowed by ``s ** -eta``."""
    eta: Annotated[float, Meta(ge=0)] = ETA
    bandwidth: Annotated[float, Meta(ge=0)] = BANDWIDTH
    """With shares: decode takes so much longer (0.1: a tenth) while a neighbour computes."""
    slowdown: dict[str, dict[str, float]] = {}
    """Instead of shares, the linear model: ``slowdown.decode.encode = 0.3`` lets a decode step take
    0.3 times its time longer for each neighbour that encodes."""
    memory: tuple[Share, ...] = ()
    """Of the GPUs' memory, by place; equal parts if empty."""

    def check(self) -> None:
        """Raise ConfigError that names the field."""
        number = len(self.places)
        for name in ("shares", "memory"):
            given: tuple[float, ...] = getattr(self, name)
            if given and (len(given) != number or sum(given) > 1.0 + 1e-9):
                raise ConfigError(f"colocated.{name}: {given} must be one a place, 1 in all")
        if self.shares and self.slowdown:
            raise ConfigError("colocated.slowdown: goes without shares")
        for kind, row in self.slowdown.items():
            if kind not in WORK or not set(row) <= set(WORK) or min(row.values(), default=0) < 0:
                raise ConfigError(f"colocated.slowdown.{kind}: {row} must be >= 0 by {WORK}")

    def memory_of(self, place: str) -> float:
        """The share of the GPUs' memory that a place has."""
        return self.memory[self.places.index(place)] if self.memory else 1 / len(self.places)

    def factor(self, place: str, kind: str, busy: Iterable[str]) -> float:
        """By how much longer work of a place takes while its neighbours do that."""
        if self.shares:
            if kind == "decode":
                return 1.0 + self.bandwidth * any(each != "decode" for each in busy)
            return float(self.shares[self.places.index(place)] ** -self.eta)
        row = self.slowdown.get(kind, {}) if self.slowdown else dict.fromkeys(WORK, 1.0)
        return 1.0 + sum(row.get(each, 0.0) for each in busy)


class Interference:
    """All places. Whoever computes says when; runs of steps that go on hear when their pace
    changes."""

    def __init__(self, groups: Iterable[Colocated] = (), share: float = 1.0) -> None:
        """``share``: by how much a step of an instance's pictures or of its sequences takes longer
        while one of the other kind is under way there: 1 if they take turns on its GPUs, less if
        two streams overlap. Raises ConfigError where a place is on two GPUs."""
        self._share = share
        self._groups: dict[str, Colocated] = {}
        for group in groups:
            group.check()
            for place in group.places:
                if place in self._groups:
                    raise ConfigError(f"colocated.places: {place!r} is there twice")
                self._groups[place] = group
        self._slow: dict[str, list[float]] = {}
        self._busy: dict[str, list[str]] = {}
        self._slices: dict[str, float] = {}
        """Of the last step of pictures at a place."""
        self._runs: dict[str, Callable[[], None]] = {}

    @property
    def neighbours(self) -> Mapping[str, Colocated]:
        """The group of each place that has one."""
        return self._groups

    def listen(self, place: str, interrupt: Callable[[], None]) -> None:
        """Call ``interrupt`` when the pace of a place changes."""
        self._runs[place] = interrupt

    def slow(self, place: str, factor: float) -> None:
        """Everything takes so many times longer there, from now on."""
        self._slow.setdefault(place, []).append(factor)
        self._tell(place)

    def recover(self, place: str, factor: float) -> None:
        """One such slowness is over."""
        self._slow[place].remove(factor)
        self._tell(place)

    def begin(self, place: str, what: str, share: float = 1.0) -> float:
        """Work begins; by how much longer it takes. ``share``: of pictures, the slice of the device
        that they are bounded to."""
        kind = _KIND.get(what, what)
        own = self._busy.setdefault(place, [])
        if kind == "encode":
            self._slices[place] = share
        factor = math.prod(self._slow.get(place, ())) * self._beside(place, kind, own)
        own.append(kind)
        self._tell(place)
        group = self._groups.get(place)
        if group is None:
            return factor
        others = [other for other in group.places if other != place]
        for other in others:
            self._tell(other)
        busy = [each for other in others for each in self._busy.get(other, ())]
        return factor * group.factor(place, kind, busy)

    def end(self, place: str, what: str) -> None:
        """Work is over."""
        self._busy[place].remove(_KIND.get(what, what))
        self._tell(place)
        group = self._groups.get(place)
        for other in () if group is None else group.places:
            if other != place:
                self._tell(other)

    def _beside(self, place: str, kind: str, own: Sequence[str]) -> float:
        """By how much work takes longer for what its own instance does besides: pictures on a slice
        leave decodes their pace; with prefill, which nothing bounds, they take turns there."""
        share = self._slices.get(place, 1.0)
        if kind == "encode" and share < 1.0:
            return slowed(1.0, share) * (1.0 + self._share * own.count("prefill"))
        if "encode" in own and share < 1.0:
            return 1.0 + (BANDWIDTH if kind == "decode" else self._share * share)
        return 1.0 + self._share * len(own)

    def _tell(self, place: str) -> None:
        if (interrupt := self._runs.get(place)) is not None:
            interrupt()


def present(groups: Iterable[Colocated], places: Iterable[str]) -> tuple[Colocated, ...]:
    """The groups all of whose places are there."""
    known = set(places)
    return tuple(group for group in groups if known.issuperset(group.places))
