"""``triptych simulate``: a scenario under a virtual clock; a table, a report, a trace."""

import argparse
from pathlib import Path

from bench.report import page, perfetto, terminal
from bench.run import Run
from bench.study import Fit, Goodput, Study, write
from cli.progress import Bar
from simulator.costs.registry import costs
from simulator.goodput import into, search
from simulator.run import simulate
from simulator.scenario import Scenario, System, read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("scenario", type=Path, help="a TOML file; docs/simulator.md describes it")
    parser.add_argument("--goodput", action="store_true", help="search each system's goodput")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of a goodput, as a share")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every request")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a Perfetto trace of one run")


def run(words: argparse.Namespace) -> int:
    """Run everything and show it."""
    scenario = read(words.scenario)
    found = _searched(scenario, words.tolerance) if words.goodput else (_swept(scenario), [])
    runs, goodputs = found
    study = Study(
        title=scenario.name,
        runs=tuple(runs),
        scenario=words.scenario.read_text(),
        hardware=f"simulated {scenario.costs}: {costs(scenario.costs).source}",
        fits=_fits(scenario),
    )
    print(terminal.table(study))
    for goodput in goodputs:
        print(f"{goodput.system}: {terminal.told(goodput)}")
    if words.report is not None:
        page.write(words.report, study)
        print(f"written: {words.report}")
    if words.json is not None:
        write(words.json, study)
        print(f"written: {words.json}")
    if words.trace is not None:
        perfetto.write(words.trace, runs[-1])
        print(f"written: {words.trace}")
    return 0


def _swept(scenario: Scenario) -> list[Run]:
    """Every rate, seed and system of the scenario, once."""
    runs, bar, plans = [], Bar(), list(scenario.plans())
    for index, (system, plan) in enumerate(plans):
        share = _Share(bar, scenario, system, plan.rate, (index, len(plans)))
        runs.append(simulate(plan, scenario.arrivals(plan.rate, plan.seed), share))
    bar.done()
    return runs


def _searched(scenario: Scenario, tolerance: float) -> tuple[list[Run], list[Goodput]]:
    """The goodput of every system, and the runs that it took."""
    runs: list[Run] = []
    goodputs, bar = [], Bar()
    for index, system in enumerate(scenario.systems):
        share = _Share(bar, scenario, system, 0.0, (index, len(scenario.systems)))
        goodputs.append(search(scenario, system, tolerance, into(runs), share))
    bar.done()
    return runs, goodputs


class _Share:
    """Shows how far one run of several is."""

    def __init__(
        self, bar: Bar, scenario: Scenario, system: System, rate: float, place: tuple[int, int]
    ) -> None:
        self._bar = bar
        self._duration_s = scenario.duration_s
        self._text = f"{system.name} at {rate:g}/s" if rate else f"{system.name}: goodput"
        self._place = place

    def __call__(self, now_s: float, num_requests: int) -> None:
        """See ``simulator.run.Progress``."""
        index, count = self._place
        share = (index + min(1.0, now_s / self._duration_s)) / count
        self._bar(f"{self._text}: {now_s:.0f} s, {num_requests} requests", share)


def _fits(scenario: Scenario) -> tuple[Fit, ...]:
    card = costs(scenario.costs)
    return tuple(
        Fit(what, scenario.costs, error.num_points, error.mean, error.max)
        for what, error in sorted(card.errors.items())
    )
