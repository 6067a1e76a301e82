"""A target file: a published result, the scenario that should show it, and the bands it must meet.

TOML in, values out. Knows names of measures and figures as text; runs nothing.
"""

import tomllib
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from simulator import scenario
from simulator.scenario import Scenario, System
from triptych.core.errors import ConfigError


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The scenario with other values of some fields."""

    name: str
    change: dict[str, Any] = {}
    """Fields of the scenario, each in place of the file's."""


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number and the band that it must lie in."""

    says: str
    """What is compared, in words."""
    measure: str
    """A name of ``measures.MEASURES``."""
    figure: str = ""
    """A name of ``statistics.STATISTICS``, for measures that need one."""
    of: str = "*"
    """Systems, by a pattern as of file names; where several match, the best."""
    to: str = ""
    """Systems to compare with."""
    case: str = ""
    """Name of the case; the first if empty."""
    cases: tuple[str, ...] = ()
    """Patterns of cases, for measures over several; all if empty."""
    low: float | None = None
    high: float | None = None
    published: float | None = None
    """What the source reports, if it reports this number."""
    miss: str = ""
    """Why this one is known to lie outside its band. A miss without a reason fails."""

    def is_within(self, value: float) -> bool:
        """Whether the band holds the value; both of its ends do."""
        low = -float("inf") if self.low is None else self.low
        return low <= value <= (float("inf") if self.high is None else self.high)

    @property
    def band(self) -> str:
        """In words."""
        if self.low is None or self.high is None:
            ends = (("at least", self.low), ("at most", self.high))
            return ", ".join(f"{word} {end:.4g}" for word, end in ends if end is not None)
        if self.low == self.high:
            return f"{self.low:.4g}"
        return f"{self.low:.4g} to {self.high:.4g}"


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds that runs are judged by, all combinations."""

    ttft_s: tuple[float, ...] = ()
    tpot_s: tuple[float, ...] = ()


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A target file."""

    number: int
    title: str
    source: str
    """Paper or artifact, and the place in it."""
    claim: str
    """What it reports."""
    setting: str
    """What of its setting is reproduced, and what stands in for what cannot be had."""
    scenario: dict[str, Any]
    """As in a scenario file."""
    checks: tuple[Check, ...]
    cases: tuple[Case, ...] = (Case("all"),)
    layouts: tuple[str, ...] = ()
    """Families (``E+P+D``) of which every layout of ``num_gpus`` GPUs is a system of its own."""
    num_gpus: int = 8
    grid: Grid = Grid()
    trace: str = ""
    """File below the folder of traces that is replayed."""
    tolerance: float = 0.05
    """Of a goodput, as a share."""
    minutes: float = 1.0
    """Of CPU, about: who takes longest is begun first."""

    @cached_property
    def scenarios(self) -> dict[str, Scenario]:
        """By name of the case. Raises ConfigError that names the field."""
        return {case.name: self._made(case) for case in self.cases}

    def case_of(self, check: Check) -> str:
        """Name of the check's case."""
        return check.case or self.cases[0].name

    def cases_of(self, check: Check) -> list[str]:
        """Names of the check's cases, in the order of the file."""
        patterns = check.cases or ("*",)
        names = [case.name for case in self.cases]
        return [name for name in names if any(fnmatchcase(name, each) for each in patterns)]

    def systems(self, case: str, pattern: str) -> list[System]:
        """Of a case, those whose names match. Raises ConfigError if there is none."""
        found = [s for s in self.scenarios[case].systems if fnmatchcase(s.name, pattern)]
        if not found:
            raise ConfigError(f"target {self.number}: {case}: no system is called {pattern!r}")
        return found

    def _made(self, case: Case) -> Scenario:
        tree = {"name": f"{self.title}: {case.name}", **self.scenario, **case.change}
        systems = [*tree.get("systems", ())]
        taken = {each["topology"] for each in systems}
        for family in self.layouts:
            for topology in layouts_of(family, self.num_gpus):
                if topology not in taken:
                    systems.append({"name": topology, "topology": topology})
        return scenario.made({**tree, "systems": systems}, f"target {self.number}, {case.name}")


def layouts_of(family: str, num_gpus: int) -> list[str]:
    """Every topology of a family (``E+P+D``) with one GPU an instance, all GPUs used."""
    roles = family.split("+")

    def split(count: int, parts: int) -> list[list[int]]:
        if parts == 1:
            return [[count]]
        firsts = range(1, count - parts + 2)
        return [[first, *rest] for first in firsts for rest in split(count - first, parts - 1)]

    counted = split(num_gpus, len(roles))
    return [",".join(f"{r}{n}" for r, n in zip(roles, each, strict=True)) for each in counted]


def read(path: Path) -> Target:
    """The target in a file. Raises ConfigError that names the field."""
    try:
        target = msgspec.convert(tomllib.loads(path.read_text()), Target)
    except OSError as error:
        raise ConfigError(f"target {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"target {path}: {error}") from error
    names = [case.name for case in target.cases]
    if len(set(names)) != len(names):
        raise ConfigError(f"target {path}: cases: each name once")
    for check in target.checks:
        if target.case_of(check) not in names or not target.cases_of(check):
            raise ConfigError(f"target {path}: {check.says}: no case {check.case or check.cases}")
        if check.low is None and check.high is None:
            raise ConfigError(f"target {path}: {check.says}: a band has at least one end")
    return target


def read_all(folder: Path) -> list[Target]:
    """The targets of a folder, by number. Raises ConfigError."""
    targets = sorted(map(read, folder.glob("*.toml")), key=lambda target: target.number)
    if not targets:
        raise ConfigError(f"targets: no .toml files in {folder}")
    return targets
