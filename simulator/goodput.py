"""Goodput of simulated systems: bisection on the rate, every rate with every seed.

Common random numbers: a seed gives the same requests at every rate and to every system, only closer
together, so systems are compared on the same draw. Knows how to ask; figures are ``bench``'s.
"""

from collections.abc import Callable

from msgspec.structs import replace

from bench.figures import figures
from bench.goodput import Bisection, Crossing, Point, crossing, over_seeds
from bench.run import Run
from bench.study import Goodput
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

    def measure(self, rate: float) -> float:
        """Attainment at a rate, the mean over the seeds."""
        scenario, shares = self._scenario, []
        for seed in scenario.seeds:
            plan = scenario.plan(self._system, rate, seed)
            plan = replace(plan, level=scenario.attainment)
            run = simulate(plan, scenario.arrivals(rate, seed), self._on_progress)
            self.num_gpus = run.num_gpus
            share = figures(run).attainment
            self.curves[seed].append(Point(rate, share))
            shares.append(share)
            self._on_run(run)
        return sum(shares) / len(shares)

    def goodput(self, found: Crossing) -> Goodput:
        """The result, with its interval over the seeds."""
        level, curves = self._scenario.attainment, list(self.curves.values())
        spread = over_seeds(curves, level)
        return Goodput(self._system.name, level, found, spread, self.num_gpus, len(curves))


def search(
    scenario: Scenario,
    system: System,
    tolerance: float = 0.05,
    on_run: Hear = lambda _: None,
    on_progress: Progress | None = None,
) -> Goodput:
    """The highest rate at which attainment over all seeds holds, from the scenario's first rate on.

    ``on_run`` hears of every run that was needed.
    """
    sweep = Sweep(scenario, system, on_run, on_progress)
    bisection = Bisection(scenario.rates[0], scenario.attainment, tolerance)
    return sweep.goodput(bisection.run(sweep.measure))


def of_curve(points: list[Point], level: float) -> float:
    """Goodput of a sweep of rates."""
    return crossing(points, level).rate
