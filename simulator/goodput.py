"""Goodput of simulated systems: bisection on the rate, every rate with every seed.

Common random numbers: a seed gives the same requests at every rate and to every system, only closer
together, so systems are compared on the same draw. Knows how to ask; figures are ``bench``'s.
"""

from collections.abc import Callable

from bench.figures import figures
from bench.goodput import Bisection, Crossing, Point, crossing, over_seeds
from bench.run import Run
from bench.study import Goodput
from simulator.run import Progress, simulate
from simulator.scenario import Scenario, System

Hear = Callable[[Run], None]


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
    level = scenario.attainment
    bisection = Bisection(scenario.rates[0], level, tolerance)
    curves: dict[int, list[Point]] = {seed: [] for seed in scenario.seeds}
    num_gpus = 1.0

    def measure(rate: float) -> float:
        nonlocal num_gpus
        shares = []
        for seed in scenario.seeds:
            plan = scenario.plan(system, rate, seed)
            run = simulate(plan, scenario.arrivals(rate, seed), on_progress)
            num_gpus = run.num_gpus
            share = figures(run).attainment
            curves[seed].append(Point(rate, share))
            shares.append(share)
            on_run(run)
        return sum(shares) / len(shares)

    found: Crossing = bisection.run(measure)
    spread = over_seeds(list(curves.values()), level)
    return Goodput(system.name, level, found, spread, num_gpus)


def of_curve(points: list[Point], level: float) -> float:
    """Goodput of a sweep of rates."""
    return crossing(points, level).rate
