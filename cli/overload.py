"""``python -m cli.overload``: how much goodput is left at ten times the load, simulated or live.

``--live`` starts a server of the oracle model on this machine, finds its peak and offers the
multiple to it in an open loop; otherwise the scenario runs under a virtual clock.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.live.http import HttpSender
from bench.live.measure import Bench, Contender, Load
from bench.overload import Overload, overload, peak_of
from bench.report.terminal import aligned
from bench.run import Run
from bench.sources.registry import workload
from bench.systems import TriptychServer
from cli.progress import Bar
from simulator.run import simulate
from simulator.scenario import Scenario, System, read
from triptych.core.errors import ConfigError

SCENARIO = Path("examples/scenarios/overload.toml")
LIVE = (
    "admission.policy=slo",
    "router.placement=slo",
    "engine.order=slack",
    "engine.batching=slack",
    "engine.encode_order=slack",
    "engine.max_sequences=4",
    "limits.max_requests=4096",
    "limits.max_requests_per_tenant=4096",
)
"""Settings of the live server; ``--set`` comes behind them. Few places, so that ten times its peak
is no more than a client on the same cores can send."""


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="overload", description=__doc__)
    top.add_argument("scenario", type=Path, nargs="?", default=SCENARIO)
    top.add_argument("--times", type=float, default=10.0, help="multiple of the peak's rate")
    top.add_argument("--minutes", type=float, default=10.0, help="of overload")
    top.add_argument("--only", help="name of one system of the scenario")
    top.add_argument("--live", action="store_true", help="a real server of the oracle model")
    top.add_argument("--topology", default="E1,P1,D1", help="of the live server")
    top.add_argument("--workload", default="synthetic:fixed,size=112x84,text=24,output=256",
                     help="for the live server")  # fmt: skip
    top.add_argument("--rates", default="1,2,3,4,6,8,12", help="to find the live peak with")
    top.add_argument("--seconds", type=float, default=10.0, help="at each of those rates")
    top.add_argument("--fresh", action="store_true", help="live: a connection for every request")
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and show; 1 if the first system keeps less than 90 % of its peak."""
    words = parser().parse_args(arguments)
    try:
        found = [asyncio.run(_live(words))] if words.live else _simulated(words)
    except ConfigError as error:
        print(f"overload: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return int(found[0].kept < 0.9)


def table(found: Sequence[Overload]) -> str:
    """In Markdown."""
    head = ["system", "peak: attained /s", "offered /s", "overload: offered /s", "attained /s",
            "of the peak", "refused", "refusal p99 ms"]  # fmt: skip
    rows = [
        [
            one.system,
            f"{one.peak:.3g}",
            f"{one.peak_rate:.3g}",
            f"{one.rate:.3g}",
            f"{one.attained:.3g}",
            f"{one.kept:.0%}",
            f"{one.share_refused:.1%}",
            f"{1e3 * one.refusal_p99_s:.3g}",
        ]
        for one in found
    ]
    return aligned([head, *rows])


def _simulated(words: argparse.Namespace) -> list[Overload]:
    scenario, bar = read(words.scenario), Bar()
    systems = [one for one in scenario.systems if words.only in (None, one.name)]
    found = []
    for system in systems:
        sweep = [_run(scenario, system, rate, bar) for rate in scenario.rates]
        rate = words.times * peak_of(sweep).rate
        longer = msgspec.structs.replace(scenario, duration_s=60.0 * words.minutes)
        found.append(overload(sweep, _run(longer, system, rate, bar)))
    bar.done()
    return found


def _run(scenario: Scenario, system: System, rate: float, bar: Bar) -> Run:
    def show(now_s: float, num_requests: int) -> None:
        text = f"{system.name} at {rate:.3g}/s: {now_s:.0f} s, {num_requests} requests over"
        bar(text, min(1.0, now_s / scenario.duration_s))

    seed = scenario.seeds[0]
    arrivals = scenario.source.arrivals(rate, scenario.duration_s, seed)
    return simulate(scenario.plan(system, rate, seed), arrivals, show)


async def _live(words: argparse.Namespace) -> Overload:
    """Of a server in processes of its own; the client shares its machine."""
    server = TriptychServer("oracle", words.topology, [*LIVE, *words.set], 60.0)
    await server.start()
    bar, sender = Bar(), HttpSender(server.target, keeps=not words.fresh)
    one = Contender(f"oracle, {words.topology}", sender, 1.0)
    try:
        source = workload(words.workload)
        short = Bench(Load(source, words.seconds, 2.0, (1,)), bar)
        sweep = [await short.run(one, float(rate), 1) for rate in words.rates.split(",")]
        rate = words.times * peak_of(sweep).rate
        long = Bench(Load(source, 60.0 * words.minutes, 5.0, (1,)), bar)
        beyond = await long.run(one, rate, 1)
        bar(f"client late at p99: {1e3 * beyond.late_p99_s:.1f} ms {beyond.invalid}\n", 1.0)
    finally:
        bar.done()
        await sender.close()
        await server.stop()
    return overload(sweep, beyond)


if __name__ == "__main__":
    sys.exit(main())
