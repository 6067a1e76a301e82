"""``python -m bench prefix``: replays a trace of prompts through the real prefix cache.

Knows the KV cache, its eviction orders and the tiers below it, all in blocks. Knows no server and
no time: prompts come one after another, and what they answered is not in the trace. A prompt is
the list of its blocks' hashes (Mooncake's ``hash_ids``); each hash is a token in a block of one.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from bench import plots
from triptych.cache.eviction import ORDERS, Recompute
from triptych.cache.kv import KvCache
from triptych.cache.tiers import DEMOTIONS, TierIndex
from triptych.core.catalog import Tier
from triptych.core.ids import BlockId, ContentHash, JobId

BLOCK_TOKENS = 512
"""Tokens behind one hash of Mooncake's traces (FAST 2025)."""
SIZES = "1000,3000,10000,30000,50000,100000"
HOST_SIZES = "3000,10000,30000,100000"

Prompts = Sequence[Sequence[int]]
Say = Callable[[str], None]


class Below:
    """The tiers below a cache, host memory and perhaps a disk, without their bytes: the index that
    serves, told what ``offload.mover`` would tell it if every copy was done at once. Implements
    ``Watcher``.
    """

    def __init__(self, host_blocks: int, disk_blocks: int = 0) -> None:
        self.index = TierIndex(host_blocks, disk_blocks)
        self._has_disk = disk_blocks > 0

    def stored(self, key: ContentHash, _blocks: tuple[BlockId, ...]) -> None:
        """Written back while the cache has it still, unless a tier has it already."""
        self.index.lift(key)
        if self.index.find(key) is None:
            self._write(Tier.HOST, key, is_on_device=True)
        self._sink()

    def evicted(self, key: ContentHash, _blocks: tuple[BlockId, ...]) -> None:
        """What was not written back is now."""
        self.index.sink(key)
        self._write(Tier.HOST, key)
        self._sink()

    def bring(self, keys: Sequence[ContentHash]) -> int:
        """How many of ``keys`` are there, up to the first that is not. They are read."""
        count = self.index.covered(keys)
        for key in keys[:count]:
            tier = self.index.find(key)
            if tier is not None and (held := self.index.pin(tier, key)) is not None:
                self.index.unpin(held)
        return count

    def _write(self, tier: Tier, key: ContentHash, *, is_on_device: bool = False) -> None:
        held = self.index.begin(tier, key, 1, is_on_device=is_on_device)
        if held is not None:
            self.index.commit(held)

    def _sink(self) -> None:
        while self._has_disk and (found := self.index.demotions(DEMOTIONS)):
            for key in found:
                above = self.index.pin(Tier.HOST, key)
                self._write(Tier.DISK, key)
                if above is not None:
                    self.index.unpin(above, is_cold=True)


class Task(msgspec.Struct, frozen=True):
    """One replay."""

    order: str
    num_blocks: int
    """Of the cache."""
    host_blocks: int = 0
    """Of the tier below it; 0 if there is none."""
    disk_blocks: int = 0
    """Of the tier below that."""


class Replay(msgspec.Struct, frozen=True):
    """What came of one replay."""

    task: Task
    asked: int
    """Blocks of all prompts."""
    hits: int
    """Of these, found in the cache."""
    below_hits: int
    """Found below it."""
    saved: float
    """Share of the work of computing all prompts (not of the blocks) that hits saved."""
    refused: int
    """Prompts larger than the cache. They are computed, and count as asked."""

    @property
    def ratio(self) -> float:
        """Share of blocks found anywhere."""
        return (self.hits + self.below_hits) / self.asked


def read(path: Path) -> list[list[int]]:
    """The prompts of a trace in Mooncake's format: JSON lines with ``hash_ids``."""

    class Line(msgspec.Struct):
        hash_ids: list[int]

    decode = msgspec.json.Decoder(Line).decode
    return [decode(line).hash_ids for line in path.read_bytes().splitlines()]


def replay(prompts: Prompts, task: Task) -> Replay:
    """Open, commit and release every prompt in turn."""
    recompute = Recompute(horizon_tokens=Recompute().horizon_tokens / BLOCK_TOKENS)
    cache = KvCache(task.num_blocks, 1, "trace", order=ORDERS[task.order], recompute=recompute)
    below = Below(task.host_blocks, task.disk_blocks) if task.host_blocks else None
    if below is not None:
        cache.watchers.add(below)
    hits = below_hits = refused = 0
    work = saved = 0.0
    for number, prompt in enumerate(prompts):
        size = len(prompt)
        table = cache.table(JobId(f"{number}"), b"", list(prompt))
        end = hit = cache.match(table, size)
        if below is not None:
            end += below.bring(cache.keys(table, size)[hit:])
        work += recompute.of_range(0, size)
        if not cache.open(table, size, limit=size):
            refused += 1
            continue
        hits, below_hits = hits + hit, below_hits + end - hit
        saved += recompute.of_range(0, end)
        cache.commit(table, size)
        cache.release(table)
    cache.check()
    if below is not None:
        below.index.check()
    asked = sum(map(len, prompts))
    return Replay(task, asked, hits, below_hits, saved / work if work else 0.0, refused)


def table_of(rows: Iterable[Replay]) -> str:
    """Markdown, a line for each replay."""
    head = "blocks | order | host | disk | hits (%) | of them below (%) | work saved (%) | refused"
    lines = [f"| {head} |", "|" + "---|" * 8]
    for row in rows:
        task = row.task
        below = [f"{number:,}" if number else "" for number in (task.host_blocks, task.disk_blocks)]
        shares = (row.ratio, row.below_hits / row.asked, row.saved)
        cells = [f"{task.num_blocks:,}", task.order, *below]
        cells += [f"{100 * share:.1f}" for share in shares] + [str(row.refused)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: Sequence[Replay], unlimited: Replay, path: Path, title: str) -> None:
    """Blocks hit and work saved by size and order, and blocks hit by the tier below."""
    hits: dict[str, list[tuple[float, float]]] = {}
    saved: dict[str, list[tuple[float, float]]] = {}
    below: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        task = row.task
        if task.host_blocks:
            disk = f", {task.disk_blocks:,} on disk" if task.disk_blocks else ""
            name = f"{task.num_blocks:,} above{disk}"
            below.setdefault(name, []).append((task.host_blocks, 100 * row.ratio))
        else:
            hits.setdefault(task.order, []).append((task.num_blocks, 100 * row.ratio))
            saved.setdefault(task.order, []).append((task.num_blocks, 100 * row.saved))
    most = 100 * unlimited.ratio
    x = "blocks of the cache"
    panels = [
        plots.Panel("blocks hit (%)", x, hits, most, is_log=True),
        plots.Panel("prefill work saved (%)", x, saved, 100 * unlimited.saved, is_log=True),
    ]
    if below:
        x = "blocks of host memory"
        panels.append(plots.Panel("blocks hit, with tiers below (%)", x, below, most, is_log=True))
    plots.draw_lines(panels, path, title)


def main(arguments: Sequence[str]) -> int:
    """Replay, print the table, write the picture."""
    words = _parser().parse_args(arguments)
    prompts = read(words.trace)
    orders = words.orders.split(",")
    num_distinct = len({block for prompt in prompts for block in prompt})
    tasks = [Task(orders[0], max(num_distinct, 1))]
    tasks += [Task(order, size) for size in _numbers(words.sizes) for order in orders]
    tasks += [
        Task(orders[0], size, host, disk)
        for size in _numbers(words.tiered)
        for disk in _numbers(words.disks)
        for host in _numbers(words.hosts)
    ]
    rows = []
    for number, task in enumerate(tasks, 1):
        below = f", {task.host_blocks:,} below" if task.host_blocks else ""
        _say(f"replay {number} of {len(tasks)}: {task.order}, {task.num_blocks:,} blocks{below}")
        rows.append(replay(prompts, task))
    _say("")
    unlimited, rest = rows[0], rows[1:]
    print(f"{len(prompts):,} prompts, {unlimited.asked:,} blocks, {num_distinct:,} distinct.")
    print(f"With room for all of them {unlimited.hits:,} hit: {100 * unlimited.ratio:.1f} %.\n")
    print(table_of(rows))
    words.out.parent.mkdir(parents=True, exist_ok=True)
    picture(rest, unlimited, words.out, f"{words.trace.name}, {len(prompts):,} prompts")
    print(f"\nwritten: {words.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench prefix", description=__doc__)
    top.add_argument("--trace", type=Path, required=True, help="JSON lines with hash_ids")
    top.add_argument("--orders", default=",".join(ORDERS))
    top.add_argument("--sizes", default=SIZES, help="blocks of the cache")
    top.add_argument("--hosts", default=HOST_SIZES, help="blocks of host memory below it")
    top.add_argument("--disks", default="0,50000", help="blocks of a disk below that")
    top.add_argument("--tiered", default="1000,10000", help="cache sizes that get such tiers")
    top.add_argument("--out", type=Path, default=Path("runs/bench/prefix-trace.png"))
    return top


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _say(text: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\033[K{text}"[: os.get_terminal_size().columns + 4])
        sys.stdout.flush()
