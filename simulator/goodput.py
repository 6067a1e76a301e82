"""Goodput of simulated systems: bisection on the rate, every rate with every seed.

Common random numbers: a seed gives the same requests at every rate and to every system, only closer
together, so systems are compared on the same draw. Knows how to ask; figures are ``bench``'s.
"""

import gc
from collections.abc import Callable

from msgspec.structs import replace

from bench.figures import figures
from bench.goodput import Bisection, Crossing, Point, crossing, over_seeds
from bench.run import Run
from bench.study import Goodput
from simulator.hopeless import below
from simulator.run import Progress, simulate
from simulator.scenario import Scenario, System

Hear = Callable[[Run], None]


class Sweep:
    """Rates of one system, each measured with every seed of the scenario."""

    def __init__(
        self,
        scenario: Scenario,
        system: System,
        on_run: Hear = lambda _: None,
        on_progress: Progress | None = None,
    ) -> None:
        self._scenario = scenario
        self._system = system
        self._on_run = on_run
        self._on_progress = on_progress
        self.curves: dict[int, list[Point]] = {seed: [] for seed in scenario.seeds}
        self.num_gpus = 1.0
        self._given_up: set[float] = set()
        """Rates at which some run was given up."""

    def measure(self, rate: float) -> float:
        """Attainment at a rate, the mean over the seeds. Where it is far below what is asked for,
        runs are given up, and it is only about right."""
        return self._measured(rate, below(self._scenario.attainment, len(self._scenario.seeds)))

    def settle(self, bisection: Bisection) -> Crossing:
        """The crossing, between two rates of which every run is whole."""
        found = bisection.result()
        if found.bad in self._given_up:
            for curve in self.curves.values():
                curve[:] = [point for point in curve if point.rate != found.bad]
            bisection.correct(found.bad, self._measured(found.bad, 0.0))
            found = bisection.result()
        return found

    def _measured(self, rate: float, least: float) -> float:
        scenario, shares = self._scenario, []
        self._given_up.discard(rate)
        for seed in scenario.seeds:
            plan = replace(scenario.plan(self._system, rate, seed), least=least)
            run = simulate(plan, scenario.arrivals(rate, seed), self._on_progress)
            gc.collect()  # a world that is over is one web of cycles: many would be kept
            self.num_gpus = run.num_gpus
            share = figures(run).attainment
            self.curves[seed].append(Point(rate, share))
            shares.append(share)
            if run.invalid:
                self._given_up.add(rate)
            self._on_run(run)
        return sum(shares) / len(shares)

    def goodput(self, found: Crossing) -> Goodput:
        """The result, with its interval over the seeds."""
        level, curves = self._scenario.attainment, list(self.curves.values())
        spread = over_seeds(curves, level)
        return Goodput(self._system.name, level, found, spread, self.num_gpus, len(curves))


def into(runs: list[Run]) -> Hear:
    """Keeps in ``runs`` those that were not given up."""
    return lambda run: None if run.invalid else runs.append(run)


def search(
    scenario: Scenario,
    system: System,
    tolerance: float = 0.05,
    on_run: Hear = lambda _: None,
    on_progress: Progress | None = None,
) -> Goodput:
    """The highest rate at which attainment over all seeds holds, from the scenario's first rate on.

    ``on_run`` hears of every run that was needed, those that were given up included.
    """
    sweep = Sweep(scenario, system, on_run, on_progress)
    bisection = Bisection(scenario.rates[0], scenario.attainment, tolerance)
    bisection.run(sweep.measure)
    return sweep.goodput(sweep.settle(bisection))


def of_curve(points: list[Point], level: float) -> float:
    """Goodput of a sweep of rates."""
    return crossing(points, level).rate
