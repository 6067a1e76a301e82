"""Runs: how often a step of decodes may be executed in a row before there is anything to decide.

A run gives what single steps would give: it ends before blocks run out, and before a sequence does,
unless each step is told: then it is ended once that is heard, and what was drawn behind is dropped.
Whoever changes the engine meanwhile has it ended behind the step in flight (``Pump.wake``). Knows
sequences and numbers of blocks; no policy.
"""

from collections.abc import Collection, Sequence

from triptych.cache.kv import KvCache
from triptych.core.event import Token
from triptych.core.plan import Drawn
from triptych.engine.policies import Work
from triptych.engine.sequence import Sequence as Decoding


def most_steps(
    chosen: Collection[Work],
    running: Sequence[Decoding],
    cache: KvCache,
    limit: int,
    *,
    are_told: bool = False,
) -> int:
    """Steps in a row of the decodes ``chosen``, at most ``limit``; 1 where anything but them could
    run, or could change by itself. Where steps ``are_told``, any token may be a sequence's last."""
    is_all = bool(chosen) and len(chosen) == len(running)
    if limit <= 1 or not is_all or not all(work.is_decode for work in chosen):
        return 1
    if any(one.job.publish is not None for one in running):
        return 1  # its token is its last
    if not are_told and any(one.job.stop.token_ids for one in running):
        return 1  # each token may be the last
    most = min(limit, *(one.job.stop.max_tokens - one.num_output for one in running))
    size, available = cache.block_size, cache.num_available
    while most > 1:
        missing = sum(
            max(0, -(-(one.total + most - 1) // size) - len(one.table.blocks)) for one in running
        )
        if missing <= available:
            break
        most //= 2
    return max(1, most)


def reserve(chosen: Collection[Decoding], steps: int, cache: KvCache) -> None:
    """Blocks for all tokens that a run of so many steps computes: ``most_steps`` saw that there are
    enough."""
    for one in chosen if steps > 1 else ():
        cache.grow(one.table, one.total + steps - 1)


def extend(
    sequence: Decoding, drawn: Drawn, later: Sequence[int], cache: KvCache
) -> tuple[Token, ...]:
    """Take in the tokens of a run; all but the last are computed as far as there is room for them,
    which there was when the run began. Those behind the first."""
    start = sequence.num_output
    sequence.tokens.append(drawn.token)
    if not later:
        return ()
    sequence.tokens.extend(later)
    cache.grow(sequence.table, sequence.total - 1)
    sequence.computed = min(sequence.total - 1, sequence.table.capacity)
    return tuple(map(Token, range(start + 1, start + 1 + len(later)), later))
