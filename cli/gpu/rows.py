"""A row of the table: what was measured, its floor, and whether its target was met.

Knows numbers and units only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Seconds of several runs."""

    median: float
    low: float
    high: float
    runs: int


class Rates(msgspec.Struct, frozen=True):
    """What the device was measured to do."""

    flops_per_s: float
    """Of a large matrix product."""
    bytes_per_s: float
    """Of a copy inside the device's memory, read and written bytes."""


class Work(NamedTuple):
    """What a phase cannot do without. Phases follow one another: no two overlap."""

    flops: float
    num_bytes: float


class Found(NamedTuple):
    """What a case found."""

    measured: Spread
    phases: Sequence[Work]
    target: float | None = None
    """Least share that is wanted: of the floor, unless ``reached`` says of what else."""
    reached: float | None = None
    beside: dict[str, float | str] | None = None
    note: str = ""


class Row(msgspec.Struct):
    """One case. Without ``measured`` it was skipped or failed, and ``note`` says why."""

    group: str
    name: str
    measured: Spread | None = None
    floor_s: float = 0.0
    bound: str = ""
    """``flops`` or ``bytes``: which takes longer; ``both`` where phases differ in that."""
    flops: float = 0.0
    num_bytes: float = 0.0
    target: float | None = None
    reached: float | None = None
    """What is compared with ``target``."""
    beside: dict[str, float | str] = {}
    """Seconds of others at the same work, or why there are none."""
    note: str = ""
    is_broken: bool = False

    @property
    def label(self) -> str:
        """Its name in the table."""
        return self.name if self.name.startswith(self.group) else f"{self.group}: {self.name}"

    @property
    def share(self) -> float | None:
        """Of the floor, reached."""
        return self.floor_s / self.measured.median if self.measured is not None else None

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing where there is no target or no figure."""
        if self.target is None or self.reached is None:
            return ""
        return "met" if self.reached >= self.target else "missed"


def row_of(group: str, name: str, found: Found, rates: Rates) -> Row:
    """What was found beside its floor: of each phase the longer of arithmetic and traffic."""
    seconds = {"flops": 0.0, "bytes": 0.0}
    for work in found.phases:
        each = {
            "flops": work.flops / rates.flops_per_s,
            "bytes": work.num_bytes / rates.bytes_per_s,
        }
        longer = max(each, key=each.__getitem__)
        seconds[longer] += each[longer]
    floor_s, bounds = sum(seconds.values()), [name for name, each in seconds.items() if each]
    reached = found.reached
    if found.target is not None and reached is None:
        reached = floor_s / found.measured.median
    return Row(
        group=group,
        name=name,
        measured=found.measured,
        floor_s=floor_s,
        bound=bounds[0] if len(bounds) == 1 else "both",
        flops=sum(work.flops for work in found.phases),
        num_bytes=sum(work.num_bytes for work in found.phases),
        target=found.target,
        reached=reached,
        beside=found.beside or {},
        note=found.note,
    )
