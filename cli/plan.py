"""``triptych plan``: which instances to build of N GPUs, written as a file to serve from."""

import argparse
from pathlib import Path

from bench.report import page, terminal
from bench.run import Run
from bench.study import Study
from cli.progress import Bar
from scheduler.planner import PLANNERS
from simulator.goodput import into
from simulator.planning import Planned, Wish, plan, serve_config
from simulator.run import Progress
from simulator.scenario import System


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--costs", required=True, help="of a GPU and a model: h200:qwen2.5-vl-7b")
    parser.add_argument("--workload", required=True, help="docs/workloads.md lists them")
    parser.add_argument("--gpus", type=int, required=True, metavar="N")
    parser.add_argument("--tp", default="1", help="tensor-parallel degrees to choose from: 1,2,4")
    parser.add_argument("--rate", type=float, default=0.0, help="wanted; 0: as many as possible")
    parser.add_argument("--planner", default="closed_form", choices=sorted(PLANNERS))
    parser.add_argument("--keep", type=int, default=4, help="candidates that are simulated")
    parser.add_argument("--trials", type=int, default=0, help="of Bayesian search besides")
    parser.add_argument("--level", type=float, default=0.9, help="attainment to keep")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--seconds", type=float, default=40.0, help="of arrivals in each run")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of a goodput, as a share")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--model", default="examples/demo_model", help="path for the written file")
    parser.add_argument("-o", "--out", type=Path, help="write the plan: triptych serve --config")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report")


def run(words: argparse.Namespace) -> int:
    """Plan and show it."""
    wish = Wish(
        costs=words.costs,
        workload=words.workload,
        num_gpus=words.gpus,
        degrees=tuple(int(each) for each in words.tp.split(",")),
        rate=words.rate,
        planner=words.planner,
        level=words.level,
        keep=words.keep,
        trials=words.trials,
        duration_s=words.seconds,
        warmup_s=words.seconds / 8,
        seeds=tuple(int(each) for each in words.seeds.split(",")),
        tolerance=words.tolerance,
        settings=tuple(words.set),
    )
    bar, runs = Bar(), list[Run]()
    found = plan(wish, into(runs), lambda system: _told(bar, system))
    bar.done()
    print(_table(found))
    best = found[0]
    print(f"\nbest: {best.system.topology}: {best.why}")
    if words.report is not None:
        page.write(words.report, Study(f"A plan for {words.gpus} GPUs", tuple(runs)))
        print(f"written: {words.report}")
    if words.out is not None:
        words.out.write_text(serve_config(best, words.model))
        print(f"written: {words.out} (triptych serve --config {words.out})")
    return 0


def _told(bar: Bar, system: System) -> Progress:
    def show(now_s: float, num_requests: int) -> None:
        bar(f"{system.topology}: {now_s:.0f} s, {num_requests} requests", 0.0)

    return show


def _table(found: list[Planned]) -> str:
    rows = [["layout", "tp", "predicted /s", "simulated /s", "per GPU", "between seeds"]]
    for one in found:
        degrees = ",".join(f"{role}={tp}" for role, tp in one.system.tp.items()) or "1"
        spread = one.goodput.interval
        rows.append(
            [
                one.system.topology,
                degrees,
                f"{one.predicted:.3g}",
                f"{one.rate:.3g}",
                f"{one.rate / one.goodput.num_gpus:.3g}",
                f"{spread.low:.3g} to {spread.high:.3g}",
            ]
        )
    return terminal.aligned(rows)
