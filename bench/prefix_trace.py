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
TIER_SIZES = "0,10000,30000,50000,100000"

Prompts = Sequence[Sequence[int]]
Say = Callable[[str], None]


class Below(Watcher, Protocol):
    """A tier below the cache. It hears what the cache stores, and keeps what it likes."""

    def leading(self, keys: Sequence[ContentHash]) -> int:
        """How many of ``keys`` it holds, up to the first that it does not. Counts as a use."""
        ...


class Tier:
    """``num_blocks`` blocks, written whenever the cache stores, given up unused for longest."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._keys: OrderedDict[ContentHash, None] = OrderedDict()

    def stored(self, key: ContentHash, _blocks: tuple[BlockId, ...]) -> None:
        """See ``Watcher``."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._num_blocks:
            self._keys.popitem(last=False)

    def evicted(self, _key: ContentHash, _blocks: tuple[BlockId, ...]) -> None:
        """See ``Watcher``."""

    def leading(self, keys: Sequence[ContentHash]) -> int:
        """See ``Below``. The end of a prefix is useless without its beginning: it goes first."""
        found = next((place for place, key in enumerate(keys) if key not in self._keys), len(keys))
        for key in reversed(keys[:found]):
            self._keys.move_to_end(key)
        return found


class Replay(msgspec.Struct, frozen=True):
    """What came of one replay."""

    order: str
    num_blocks: int
    """Of the cache."""
    below_blocks: int
    """Of the tier below; 0 if there is none."""
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


def replay(
    prompts: Prompts, order: str, num_blocks: int, below: Below | None = None, below_blocks: int = 0
) -> Replay:
    """Open, commit and release every prompt in turn."""
    recompute = Recompute(horizon_tokens=Recompute().horizon_tokens / BLOCK_TOKENS)
    cache = KvCache(num_blocks, 1, "trace", order=ORDERS[order], recompute=recompute)
    if below is not None:
        cache.watchers.add(below)
    hits = below_hits = refused = 0
    work = saved = 0.0
    for number, prompt in enumerate(prompts):
        size = len(prompt)
        table = cache.table(JobId(f"{number}"), b"", list(prompt))
        work += size * recompute.of_block(0, size) if size else 0.0
        if not cache.open(table, size, limit=size):
            refused += 1
            continue
        end = hit = table.hit_tokens
        if below is not None:
            end = max(hit, below.leading(cache.keys(table, size)))
        hits, below_hits = hits + hit, below_hits + end - hit
        saved += end * recompute.of_block(0, end) if end else 0.0
        cache.commit(table, size)
        if below is not None:
            below.leading(cache.keys(table, size))
        cache.release(table)
    cache.check()
    asked = sum(map(len, prompts))
    share = saved / work if work else 0.0
    return Replay(order, num_blocks, below_blocks, asked, hits, below_hits, share, refused)


def table_of(rows: Iterable[Replay]) -> str:
    """Markdown, a line for each replay."""
    lines = ["| blocks | below | order | hits (%) | of them below (%) | work saved (%) | refused |"]
    lines.append("|" + "---|" * 7)
    for row in rows:
        shares = (row.ratio, row.below_hits / row.asked, row.saved)
        cells = [f"{row.num_blocks:,}", f"{row.below_blocks:,}", row.order]
        cells += [f"{100 * share:.1f}" for share in shares] + [str(row.refused)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: Sequence[Replay], ceiling: float, path: Path, title: str) -> None:
    """Hit ratio by size and order, saved work by the same, and hit ratio by the tier below."""
    alone = [row for row in rows if not row.below_blocks]
    tiered = {row.num_blocks for row in rows if row.below_blocks}

    def line(of: Iterable[Replay], x: str, value: Callable[[Replay], float]) -> plots.Points:
        return [(getattr(row, x), 100 * value(row)) for row in of]

    hits, saved, below = {}, {}, {}
    for order in dict.fromkeys(row.order for row in alone):
        mine = [row for row in alone if row.order == order]
        hits[order] = line(mine, "num_blocks", lambda row: row.ratio)
        saved[order] = line(mine, "num_blocks", lambda row: row.saved)
    for size in sorted(tiered):
        mine = [row for row in rows if row.num_blocks == size and row.order == "lru"]
        name = f"cache of {size:,}, lru"
        below[name] = line(mine, "below_blocks", lambda row: row.ratio)
    panels = [
        plots.Panel("blocks hit (%)", "blocks of the cache", hits, 100 * ceiling, is_log=True),
        plots.Panel("prefill work saved (%)", "blocks of the cache", saved, is_log=True),
    ]
    if below:
        x = "blocks of the tier below"
        panels.append(plots.Panel("blocks hit, with a tier below (%)", x, below, 100 * ceiling))
    plots.draw_lines(panels, path, title)


def main(arguments: Sequence[str]) -> int:
    """Replay, print the table, write the picture."""
    words = _parser().parse_args(arguments)
    prompts = read(words.trace)
    sizes, tiers = _numbers(words.sizes), _numbers(words.tiers)
    orders = words.orders.split(",")
    num_distinct = len({block for prompt in prompts for block in prompt})
    tasks = [(orders[0], num_distinct, 0)]
    tasks += [(order, size, 0) for size in sizes for order in orders]
    tasks += [("lru", size, tier) for size in _numbers(words.tiered) for tier in tiers if tier]
    rows = []
    for number, (order, size, tier) in enumerate(tasks, 1):
        _say(f"replay {number} of {len(tasks)}: {order}, {size:,} blocks, {tier:,} below")
        rows.append(replay(prompts, order, size, Tier(tier) if tier else None, tier))
    _say("")
    print(f"{len(prompts):,} prompts, {rows[0].asked:,} blocks, {num_distinct:,} distinct.")
    print(f"With room for all of them {rows[0].hits:,} hit: {100 * rows[0].ratio:.1f} %.\n")
    print(table_of(rows))
    words.out.parent.mkdir(parents=True, exist_ok=True)
    picture(rows[1:], rows[0].ratio, words.out, f"{words.trace.name}, {len(prompts):,} prompts")
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
