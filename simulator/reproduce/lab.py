"""Where a target's numbers come from: runs and goodputs, each made when first asked for, once.

Knows how to simulate cases and systems; measures say which.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from bench.figures import figures
from bench.run import Run
from bench.study import Goodput
from simulator.costs.card import Card
from simulator.goodput import search
from simulator.hopeless import below
from simulator.reproduce.target import Target
from simulator.run import simulate
from simulator.scenario import Scenario, System
from triptych.core.errors import ConfigError

Hear = Callable[[str], None]
"""Hears of what is run."""


class NoTrace(ConfigError):
    """The file that a target replays is not there."""


class Lab:
    """One target's experiments."""

    def __init__(self, target: Target, traces: Path | None, hear: Hear) -> None:
        self.target = target
        self._traces = traces
        self._hear = hear
        self._runs: dict[tuple[str, str], list[Run]] = {}
        self._goodputs: dict[tuple[str, str], Goodput] = {}
        self.num_requests = 0
        """Simulated so far."""

    def scenario(self, case: str) -> Scenario:
        """Of a case."""
        return self.target.scenarios[case]

    def card(self, case: str, system: System, role: str = "") -> Card:
        """What a role of a system computes on."""
        return self.scenario(case).hardware(system).card(role)

    def runs(self, case: str, system: System) -> list[Run]:
        """Every rate and seed."""
        key = case, system.name
        if key not in self._runs:
            scenario = self.scenario(case)
            self._runs[key] = [
                self._run(scenario, system, rate, seed)
                for rate in scenario.rates
                for seed in scenario.seeds
            ]
        return self._runs[key]

    def goodput(self, case: str, system: System, start: float | None = None) -> Goodput:
        """By bisection from ``start`` on, or from the scenario's first rate."""
        key = case, system.name
        if key not in self._goodputs:
            self._hear(f"{case}, {system.name}: goodput")
            scenario = self.scenario(case)
            scenario = msgspec.structs.replace(scenario, rates=(start or scenario.rates[0],))
            self._goodputs[key] = search(scenario, system, self.target.tolerance, self._count)
        return self._goodputs[key]

    def attainment(self, case: str, system: System, rate: float) -> float:
        """At one rate, the mean over seeds; only about right where it is far from enough."""
        scenario = self.scenario(case)
        least = below(scenario.attainment, len(scenario.seeds))
        shares = [
            figures(self._run(scenario, system, rate, seed, least)).attainment
            for seed in scenario.seeds
        ]
        return sum(shares) / len(shares)

    def goodputs(self, case: str, systems: Iterable[System]) -> list[Goodput]:
        """Of each."""
        return [self.goodput(case, system) for system in systems]

    def trace(self) -> Path:
        """The target's trace. Raises NoTrace."""
        path = None if self._traces is None else self._traces / self.target.trace
        if path is None or not path.exists():
            raise NoTrace(f"{self.target.trace}: no copy of this trace is at hand")
        return path

    def _run(
        self, scenario: Scenario, system: System, rate: float, seed: int, least: float = 0.0
    ) -> Run:
        self._hear(f"{scenario.name}, {system.name} at {rate:g}/s")
        plan = scenario.plan(system, rate, seed)
        plan = msgspec.structs.replace(plan, keeps_busy=self._keeps_busy, sample_s=0.0, least=least)
        run = simulate(plan, scenario.arrivals(rate, seed))
        self._count(run)
        return run

    @property
    def _keeps_busy(self) -> bool:
        return any(check.figure == "hidden" for check in self.target.checks)

    def _count(self, run: Run) -> None:
        self.num_requests += len(run.rows)
