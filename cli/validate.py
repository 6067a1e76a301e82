"""``triptych validate``: the same requests to real servers and in virtual time, side by side."""

import argparse
from pathlib import Path

import msgspec

from bench.report.terminal import aligned
from cli.progress import Bar
from cli.serve import configure
from simulator.costs.card import from_file
from simulator.validation import (
    BOUNDS,
    Extent,
    Figure,
    Live,
    Pair,
    figures,
    simulated,
    validate,
)
from triptych.core.errors import ConfigError

QUICK = Extent(
    topologies=("EPD1",), shares=(0.3,), repetitions=1, duration_s=3.0, warmup_s=0.5, num_burst=8
)
"""To see that it works."""
RUNS = "runs.json"
"""In a folder of results: every run, live and simulated."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("card", type=Path, help="what `triptych profile` wrote on this machine")
    parser.add_argument("--model", metavar="DIR", help="model folder, or: oracle")
    parser.add_argument("--config", metavar="FILE", type=Path, help="configuration (TOML)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="section.key=value"
    )
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--repetitions", type=int, help="of each run")
    parser.add_argument("--topologies", help="separated by blanks")
    parser.add_argument("--quick", action="store_true", help="one short run of each workload")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write table, runs and a plot")
    parser.add_argument(
        "--again", type=Path, metavar="DIR", help="simulate once more what was measured there"
    )


def run(words: argparse.Namespace) -> int:
    """Run both and show how far apart they are; 0 whatever comes out."""
    words.topology = "EPD1"
    config, extent = configure(words), QUICK if words.quick else Extent()
    given = {
        "duration_s": words.seconds,
        "repetitions": words.repetitions,
        "topologies": tuple(words.topologies.split()) if words.topologies else None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    extent = msgspec.structs.replace(extent, **given)
    bar = Bar()
    card = from_file(words.card)
    if words.again is not None:
        pairs = simulated(config, card, extent, _measured(words.again / RUNS), bar)
    else:
        pairs = validate(config, card, extent, bar)
    bar.done()
    found = figures(pairs)
    print(told(found, pairs))
    if words.out is not None:
        _write(words.out, found, pairs)
        print(f"written: {words.out}/table.md, runs.json, validation.png")
    return 0


def _measured(path: Path) -> list[Live]:
    """The servers' runs of an earlier time. Raises ConfigError."""
    try:
        pairs = msgspec.json.decode(path.read_bytes(), type=list[Pair])
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"again: {path}: {error}") from None
    unknown = {pair.live.workload for pair in pairs} - set(Extent().workloads)
    if not pairs or unknown:
        raise ConfigError(f"again: {path}: runs of {', '.join(sorted(unknown)) or 'nothing'}")
    return [Live(pair.live, pair.share, pair.beat_s) for pair in pairs]


def rows(found: list[Figure]) -> list[list[str]]:
    """The table, its head first."""
    head = ["topology", "workload", "rate (/s)", "figure", "live (ms)", "simulated (ms)", "error"]
    return [head, *(_row(each) for each in found)]


def told(found: list[Figure], pairs: list[Pair]) -> str:
    """The table and what it comes to."""
    met = sum(each.is_met for each in found)
    bounds = ", ".join(f"{name} {bound:.0%}" for name, bound in BOUNDS.items())
    late_s = max(pair.live.late_p99_s for pair in pairs)
    return (
        f"{aligned(rows(found))}\n{met} of {len(found)} figures are within their bounds ({bounds});"
        f" `!` marks the others\nthe client was late by at most {late_s * 1e3:.1f} ms (p99)"
    )


def _row(each: Figure) -> list[str]:
    live = f"{each.live_s * 1e3:.1f} ({each.low_s * 1e3:.1f}-{each.high_s * 1e3:.1f})"
    error = f"{each.error:+.1%}{'' if each.is_met else ' !'}"
    return [each.topology, each.workload, f"{each.rate:.1f}", each.name, live,
            f"{each.simulated_s * 1e3:.1f}", error]  # fmt: skip


def _write(folder: Path, found: list[Figure], pairs: list[Pair]) -> None:
    from bench.plots import Parity, draw_parity  # matplotlib: extra `bench`

    folder.mkdir(parents=True, exist_ok=True)
    head, *body = rows(found)
    lines = [head, ["---"] * len(head), *body]
    (folder / "table.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    (folder / RUNS).write_bytes(msgspec.json.encode(pairs))
    panels = [Parity(name, bound, _points(found, name)) for name, bound in BOUNDS.items()]
    draw_parity(panels, folder / "validation.png", "Simulated and measured")


def _points(found: list[Figure], name: str) -> dict[str, list[tuple[float, float, float, float]]]:
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for each in found:
        if each.name == name:
            times = each.live_s, each.low_s, each.high_s, each.simulated_s
            live, low, high, simulated = (1e3 * seconds for seconds in times)
            series = f"{each.topology}, {each.workload.partition(',')[0]}"
            points.setdefault(series, []).append((live, low, high, simulated))
    return points
