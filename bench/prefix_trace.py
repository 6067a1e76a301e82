"""``python -m bench prefix``: replays a trace of prompts through the real prefix cache.

Knows the KV cache, its eviction orders and a tier below it, all in blocks. Knows no server and no
time: prompts come one after another, and what they answered is not in the trace. A prompt is the
list of its blocks' hashes (Mooncake's ``hash_ids``); each hash is a token in a block of one token.
"""

import argparse
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from bench import plots
from triptych.cache.eviction import ORDERS, Recompute
from triptych.cache.kv import KvCache
from triptych.cache.watch import Watcher
from triptych.core.ids import BlockId, ContentHash, JobId

BLOCK_TOKENS = 512
"""Tokens behind one hash of Mooncake's traces (FAST 2025)."""
SIZES = "1000,3000,10000,30000,50000,100000"
TIER_SIZES = "3000,10000,30000,50000,100000"

Prompts = Sequence[Sequence[int]]
Say = Callable[[str], None]


class Below(Watcher, Protocol):
    """A tier below the cache. It hears what the cache stores, and keeps what it likes."""

    def leading(self, keys: Sequence[ContentHash]) -> int:
        """How many of ``keys`` it holds, up to the first that it does not. Counts as a use."""
        ...


class Tier:
    """``num_blocks`` blocks, given up unused for longest.

    Args:
        num_blocks: its size.
        takes: what it takes in: blocks that the cache ``stored`` (written through, so that both
            hold what is new) or that it ``evicted`` (so that a block is in one of the two).
    """

    def __init__(self, num_blocks: int, takes: str = "stored") -> None:
        self._num_blocks = num_blocks
        self._takes = takes
        self._keys: OrderedDict[ContentHash, None] = OrderedDict()

    def stored(self, key: ContentHash, _blocks: tuple[BlockId, ...]) -> None:
        """See ``Watcher``."""
        if self._takes == "stored":
            self._take(key)
        else:
            self._keys.pop(key, None)

    def evicted(self, key: ContentHash, _blocks: tuple[BlockId, ...]) -> None:
        """See ``Watcher``."""
        if self._takes == "evicted":
            self._take(key)

    def leading(self, keys: Sequence[ContentHash]) -> int:
        """See ``Below``. The end of a prefix is useless without its beginning: it goes first."""
        found = next((place for place, key in enumerate(keys) if key not in self._keys), len(keys))
        for key in reversed(keys[:found]):
            self._keys.move_to_end(key)
        return found

    def _take(self, key: ContentHash) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._num_blocks:
            self._keys.popitem(last=False)


class Task(msgspec.Struct, frozen=True):
    """One replay."""

    order: str
    num_blocks: int
    """Of the cache."""
    below: str = ""
    """What the tier below takes: ``stored`` or ``evicted``; empty if there is none."""
    below_blocks: int = 0


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


def replay(prompts: Prompts, task: Task, below: Below | None = None) -> Replay:
    """Open, commit and release every prompt in turn, over ``below`` or the tier of the task."""
    recompute = Recompute(horizon_tokens=Recompute().horizon_tokens / BLOCK_TOKENS)
    cache = KvCache(task.num_blocks, 1, "trace", order=ORDERS[task.order], recompute=recompute)
    if below is None and task.below:
        below = Tier(task.below_blocks, task.below)
    if below is not None:
        cache.watchers.add(below)
    hits = below_hits = refused = 0
    work = saved = 0.0
    for number, prompt in enumerate(prompts):
        size = len(prompt)
        table = cache.table(JobId(f"{number}"), b"", list(prompt))
        end = hit = cache.match(table, size)
        if below is not None:
            end += below.leading(cache.keys(table, size)[hit:])
        work += recompute.of_range(0, size)
        if not cache.open(table, size, limit=size):
            refused += 1
            continue
        hits, below_hits = hits + hit, below_hits + end - hit
        saved += recompute.of_range(0, end)
        cache.commit(table, size)
        if below is not None:
            below.leading(cache.keys(table, size))
        cache.release(table)
    cache.check()
    asked = sum(map(len, prompts))
    return Replay(task, asked, hits, below_hits, saved / work if work else 0.0, refused)


def table_of(rows: Iterable[Replay]) -> str:
    """Markdown, a line for each replay."""
    lines = ["| blocks | order | below | hits (%) | of them below (%) | work saved (%) | refused |"]
    lines.append("|" + "---|" * 7)
    for row in rows:
        task = row.task
        below = f"{task.below_blocks:,} {task.below}" if task.below else ""
        shares = (row.ratio, row.below_hits / row.asked, row.saved)
        cells = [f"{task.num_blocks:,}", task.order, below]
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
        if task.below:
            name = f"{task.num_blocks:,} above, takes what is {task.below}"
            below.setdefault(name, []).append((task.below_blocks, 100 * row.ratio))
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
        x = "blocks of the tier below"
        panels.append(plots.Panel("blocks hit, with a tier below (%)", x, below, most, is_log=True))
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
        Task(orders[0], size, takes, tier)
        for size in _numbers(words.tiered)
        for takes in ("stored", "evicted")
        for tier in _numbers(words.tiers)
    ]
    rows = []
    for number, task in enumerate(tasks, 1):
        below = f", {task.below_blocks:,} below" if task.below else ""
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
    top.add_argument("--tiers", default=TIER_SIZES, help="blocks of a tier below it")
    top.add_argument("--tiered", default="1000,10000", help="cache sizes that get such a tier")
    top.add_argument("--out", type=Path, default=Path("runs/bench/prefix-trace.png"))
    return top


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _say(text: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\033[K{text}"[: os.get_terminal_size().columns + 4])
        sys.stdout.flush()
