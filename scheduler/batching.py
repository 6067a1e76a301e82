"""Where a prompt is cut, and which pieces of work make a step.

Chunked prefill beside decodes under one budget after Sarathi-Serve (OSDI 2024, section 4.2), with
one difference: the cuts come from the prompt alone, and a step with less room takes fewer pieces,
never smaller ones. What a step computes is in one order, whoever chose it.
"""

from collections.abc import Callable, Iterable, Sequence

from scheduler.fairness import in_front, is_owed
from triptych.core.request import Prompt
from triptych.engine.policies import START, Budget, Moment, Work

PATIENCE = 4
"""Steps that prefill is passed over, where decodes leave too little room, before it goes first."""


def boundaries_from_prompt(prompt: Prompt, chunk_tokens: int) -> tuple[int, ...]:
    """Ends of the chunks: multiples of ``chunk_tokens``, both borders of each item, the end."""
    cuts = set(range(chunk_tokens, len(prompt), chunk_tokens))
    for item in prompt.items:
        cuts.update((item.offset, item.end))
    cuts.discard(0)
    return tuple(sorted(cuts | {len(prompt)}))


def decode_first(ready: Sequence[Work], budget: Budget, _moment: Moment = START, /) -> list[int]:
    """Every decode, oldest first, then whole chunks in order of arrival until one does not fit.

    After ``PATIENCE`` steps without any chunk, the oldest chunk goes before the decodes. So no
    decode waits for a younger decode, no chunk for a younger chunk, the oldest chunk ``PATIENCE``
    steps at most for decodes.
    """
    decodes, chunks = split(ready)
    if budget.passed_over >= PATIENCE:
        return step_of(pack(chunks[:1] + decodes + chunks[1:], ready, budget), decodes, chunks)
    return step_of(pack(decodes + chunks, ready, budget), decodes, chunks)


def fcfs(ready: Sequence[Work], budget: Budget, _moment: Moment = START, /) -> list[int]:
    """Pieces in order of arrival, decode or prefill (Orca, OSDI 2022, section 4.2). A piece waits
    only for older sequences, or for a step in which its sequence comes first."""
    decodes, chunks = split(ready)
    queue = sorted(decodes + chunks, key=lambda index: (ready[index].arrival, ready[index].start))
    return step_of(pack(queue, ready, budget), decodes, chunks)


def sarathi(ready: Sequence[Work], budget: Budget, moment: Moment, /) -> list[int]:
    """Stall-free (Sarathi-Serve, OSDI 2024, algorithm 3): decodes, then prefill that was begun,
    then new prefill. ``scheduler.budgets`` finds the budget. Waits as ``shared``."""
    decodes, chunks = split(ready)
    begun = [index for index in chunks if ready[index].served_s > 0.0]
    new = [index for index in chunks if ready[index].served_s <= 0.0]
    queue = shared(decodes + begun + new, ready, moment)
    return step_of(pack(queue, ready, budget), decodes, chunks)


def splitfuse(ready: Sequence[Work], budget: Budget, moment: Moment, /) -> list[int]:
    """As many tokens in every step as the budget takes (Dynamic SplitFuse, DeepSpeed-FastGen,
    arXiv 2401.08671, section 3): decodes, then chunks in order of arrival; where one does not fit,
    shorter ones behind it fill the step. Waits as ``shared``."""
    decodes, chunks = split(ready)
    queue = shared(decodes + chunks, ready, moment)
    return step_of(pack(queue, ready, budget, skips=True), decodes, chunks)


def split(ready: Sequence[Work]) -> tuple[list[int], list[int]]:
    """Indices of decodes and of chunks, in order of arrival and of a sequence's pieces."""
    decodes: list[int] = []
    chunks: list[int] = []
    for index in sorted(range(len(ready)), key=lambda i: (ready[i].arrival, ready[i].start)):
        (decodes if ready[index].is_decode else chunks).append(index)
    return decodes, chunks


def shared(queue: list[int], ready: Sequence[Work], moment: Moment) -> list[int]:
    """``queue``, in which a turn that is owed goes to the sequence that was passed over in most
    steps: of ``n`` ready ones none waits for more than ``SHARE * n`` steps. A step takes the
    first of its queue in any case."""
    if not is_owed(moment):
        return queue

    def patience(index: int) -> tuple[int, int, int]:
        return -ready[index].num_passed_over, ready[index].arrival, ready[index].start

    return in_front(min(queue, key=patience), queue)


def pack(
    queue: Iterable[int],
    ready: Sequence[Work],
    budget: Budget,
    *,
    skips: bool = False,
    allows: Callable[[int], bool] = lambda _: True,
) -> list[int]:
    """Of ``queue``, in which a sequence's pieces are in order, what one step takes.

    The first is taken even if it is larger than the whole budget, then alone. Behind a chunk that
    does not fit, or that ``allows`` does not, come decodes only; with ``skips``, only its own
    sequence's chunks stay behind. ``allows`` is asked once, of chunks that fit.
    """
    chosen: list[int] = []
    left, is_shut, behind = budget.tokens, False, set[int]()
    for index in queue:
        if left <= 0 or len(chosen) == budget.pieces:
            break
        work = ready[index]
        size = work.end - work.start
        if size > 1 or not work.is_decode:
            if is_shut or work.arrival in behind:
                continue
            if (size > left and chosen) or not allows(index):
                behind.add(work.arrival)
                is_shut = not skips
                continue
        chosen.append(index)
        left -= size
    return chosen


def step_of(chosen: list[int], decodes: list[int], chunks: list[int]) -> list[int]:
    """The chosen in the order of a step: decodes first, each kind as ``split`` gave it."""
    if len(chosen) == len(decodes) + len(chunks):
        return decodes + chunks
    taken = set(chosen)
    return [index for index in decodes + chunks if index in taken]
