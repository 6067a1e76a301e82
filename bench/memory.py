"""``python -m bench.memory``: what an instance of each role holds, beside the monolith's.

Bytes of weights and blocks as the instances report them, and the proportional set size of their
processes as the kernel does. One picture is asked first, so that pages are touched.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec

from bench.client import Target, get
from bench.systems import Run, TriptychServer
from bench.workloads import draw

PARTS = ("weights", "kv", "embedding")


class Row(msgspec.Struct, frozen=True):
    """One instance."""

    topology: str
    instance: str
    memory_bytes: dict[str, int]
    pss_bytes: int


async def measure(model: str, topology: str, settings: list[str]) -> list[Row]:
    """Start a server, ask it once, read what its instances hold."""
    server = TriptychServer(model, topology, ["cluster.backend=process", *settings], 60.0)
    await server.start()
    try:
        await server.run(Run(draw(1, 7), (0.0,)), lambda _: None)
        _, body = await get(Target("127.0.0.1", server.admin_port, "", 10.0), "/instances")
        return [
            Row(topology, row["id"], row["memory_bytes"], pss_bytes(row["pid"]))
            for row in msgspec.json.decode(body)
        ]
    finally:
        await server.stop()


def pss_bytes(pid: int) -> int:
    """Proportional set size: shared pages are counted in equal parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss line")


def table(rows: list[Row]) -> str:
    """Megabytes by instance and part."""
    head = ["topology", "instance", *PARTS, "process (PSS)"]
    lines = [head, *([*_names(row), *_megabytes(row)] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            word.ljust(width) if column < 2 else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _names(row: Row) -> tuple[str, str]:
    return row.topology, row.instance


def _megabytes(row: Row) -> list[str]:
    sizes = [*(row.memory_bytes.get(part, 0) for part in PARTS), row.pss_bytes]
    return [f"{size / 1e6:.1f} MB" for size in sizes]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.memory", description=__doc__)
    parser.add_argument("--model", default="examples/demo_model")
    parser.add_argument("--topologies", default="EPD1 E1,P1,D1", help="separated by blanks")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    words = parser.parse_args(arguments)
    rows = []
    for topology in words.topologies.split():
        print(f"{topology}: starting", file=sys.stderr)
        rows += asyncio.run(measure(words.model, topology, words.set))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
