"""Replays of traces whose hits are known, and of Mooncake's conversations where they lie near."""

import os
from pathlib import Path

import msgspec
import pytest

from bench import __main__ as command
from bench.prefix_trace import Task, read, replay
from triptych.cache.eviction import ORDERS

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("TRIPTYCH_TRACES", ROOT.parent / "shared" / "traces"))
CONVERSATIONS = TRACES / "mooncake_fast25" / "conversation_trace.jsonl"

TURNS = [[1, 2, 3], [1, 2, 3, 4], [9, 8], [1, 2, 7], [9, 8, 5]]
"""Blocks that were asked before, as a prefix: 0, 3, 0, 2 and 2 of them; 15 in all."""


@pytest.mark.skipif(not CONVERSATIONS.exists(), reason=f"no trace at {CONVERSATIONS}")
def test_conversations_of_mooncake_hit_every_block_that_came_before():
    prompts = read(CONVERSATIONS)
    num_distinct = len({block for prompt in prompts for block in prompt})
    found = replay(prompts, Task("lru", num_distinct))
    assert (len(prompts), found.asked, num_distinct) == (12_031, 288_500, 182_790)
    assert found.hits == found.asked - num_distinct == 105_710
    assert round(100 * found.ratio, 1) == 36.6


@pytest.mark.parametrize("order", ORDERS)
def test_with_room_for_all_every_repeated_prefix_is_hit(order):
    found = replay(TURNS, Task(order, 8))
    assert (found.asked, found.hits, found.below_hits, found.refused) == (15, 7, 0, 0)
    assert 0 < found.saved < found.ratio, "the end of a prompt costs more than its beginning"


@pytest.mark.parametrize(
    ("host", "disk", "found"), [(6, 0, 3), (3, 0, 2), (2, 0, 1), (2, 2, 3), (2, 6, 3), (1, 6, 3)]
)
def test_tiers_below_find_what_was_evicted(host, disk, found):
    """What the cache holds as well gives way to what it does not, but for the one last written."""
    prompts = [[1, 2, 3], [4, 5, 6], [1, 2, 3]]
    assert replay(prompts, Task("lru", 3)).hits == 0
    tiered = replay(prompts, Task("lru", 3, host, disk))
    assert (tiered.hits, tiered.below_hits) == (0, found)


def test_a_prompt_larger_than_the_cache_is_refused_and_counts():
    found = replay([[1, 2], [1, 2, 3, 4, 5], [1, 2]], Task("lru", 4))
    assert (found.asked, found.refused, found.hits) == (9, 1, 2)


def test_command_writes_table_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="comes with the extra bench")
    trace, picture = tmp_path / "trace.jsonl", tmp_path / "new" / "trace.png"
    lines = [msgspec.json.encode({"timestamp": 0, "hash_ids": turn}) for turn in TURNS]
    trace.write_bytes(b"\n".join(lines))
    words = ["prefix", "--trace", f"{trace}", "--out", f"{picture}"]
    words += ["--sizes", "4,6", "--tiered", "4", "--hosts", "2,8", "--disks", "0,8"]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    assert "5 prompts, 15 blocks, 8 distinct" in said
    assert "7 hit: 46.7 %" in said
    assert "| 4 | lru | 8 |  | 46.7 |" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
