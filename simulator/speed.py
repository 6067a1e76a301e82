"""How fast the simulator is: ``python -m simulator.speed --instances 128 --rate 50 --seconds 60``.

Processor time of this process, since what else runs on a machine must not count. Knows one kind of
cluster: a quarter of its instances encode, a quarter prefill, the rest decode.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import msgspec

from bench.workload import Arrival
from simulator.run import simulate
from simulator.scenario import Scenario, System

EVERY_S = 1.0
"""Of real time, between two words on how far it is."""


class Speed(msgspec.Struct, frozen=True):
    """What a run took."""

    num_requests: int
    simulated_s: float
    start_s: float
    """Processor seconds until the first request: building the cluster."""
    cpu_s: float
    """Processor seconds of the rest."""

    @property
    def request_ms(self) -> float:
        """Processor time of a request, in milliseconds, all included but the start."""
        return 1e3 * self.cpu_s / max(1, self.num_requests)

    @property
    def requests_per_s(self) -> float:
        """Requests in a processor second."""
        return self.num_requests / self.cpu_s

    @property
    def ratio(self) -> float:
        """Simulated seconds in a processor second."""
        return self.simulated_s / self.cpu_s


def measure(scenario: Scenario) -> Speed:
    """The speed of a scenario's first run. Raises ConfigError."""
    plan = scenario.plan(scenario.systems[0], scenario.rates[0], scenario.seeds[0])
    arrivals = list(scenario.source.arrivals(plan.rate, plan.duration_s, plan.seed))
    told_s = begin_s = time.monotonic()
    before_s = first_s = time.process_time()

    def on_progress(virtual_s: float, num_over: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= EVERY_S:
            told_s = time.monotonic()
            sys.stderr.write(
                f"\r{told_s - begin_s:6.0f} s  {virtual_s:8.1f} simulated s"
                f"  {num_over}/{len(arrivals)} requests"
            )
            sys.stderr.flush()

    def each() -> Iterator[Arrival]:
        nonlocal first_s
        first_s = time.process_time()
        yield from arrivals

    run = simulate(plan, each(), on_progress)
    end_s = time.process_time()
    sys.stderr.write("\n")
    lasted_s = max((row.end_s for row in run.rows), default=0.0)
    return Speed(len(run.rows), lasted_s, first_s - before_s, end_s - first_s)


def scenario_of(words: argparse.Namespace) -> Scenario:
    """What the command line asks for."""
    quarter = max(1, words.instances // 4)
    decodes = max(1, words.instances - 2 * quarter)
    topology = words.topology or f"E{quarter},P{quarter},D{decodes}"
    return Scenario(
        name="speed",
        costs=words.costs,
        workload=words.workload,
        rates=(words.rate,),
        duration_s=words.seconds,
        systems=(System(topology, topology),),
        set=tuple(words.set),
    )


def main(arguments: list[str]) -> None:
    """Measure and say it."""
    parser = argparse.ArgumentParser(prog="simulator.speed", description=__doc__)
    parser.add_argument("--instances", type=int, default=128)
    parser.add_argument("--topology", default="", help="instead of a number of instances")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated")
    parser.add_argument("--workload", default="synthetic:servegen")
    parser.add_argument("--costs", default="h200:qwen2.5-vl-7b")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    speed = measure(scenario_of(parser.parse_args(arguments)))
    sys.stdout.write(
        f"{speed.num_requests} requests, {speed.simulated_s:.1f} simulated s:"
        f" {speed.cpu_s:.1f} s of processor time after {speed.start_s:.1f} s of start\n"
        f"{speed.request_ms:.2f} ms/request, {speed.requests_per_s:.0f} requests/s,"
        f" {speed.ratio:.1f} simulated s a processor second\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
