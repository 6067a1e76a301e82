"""Our planner: every topology of a number of GPUs by the closed form, the best first.

Enumerates families of roles, mixes of two families, counts, kinds of instances and token budgets;
passes over what cannot be among the best. Many GPUs are searched coarsely first, then from the best
ones on by moving one instance. Knows no queue.
"""

import heapq
from collections.abc import Iterator
from itertools import combinations, product

from scheduler.planner.candidate import Candidate, judged, ranked
from scheduler.planner.closed_form import Prediction, Works
from scheduler.planner.problem import D, E, Kind, Layout, P, Pool, Problem, written
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role

ROLES: dict[str, Role] = {
    letters: frozenset({"E": E, "P": P, "D": D}[letter] for letter in letters)
    for letters in ("E", "EP", "ED", "P", "PD", "D", "EPD")
}
FAMILIES: tuple[tuple[Role, ...], ...] = tuple(
    tuple(ROLES[letters] for letters in family.split("+"))
    for family in ("EPD", "EP+D", "ED+P", "E+PD", "E+P+D")
)
"""Ways to cut three stages (TriInfer, MLSys 2026, has the middle ones)."""
GRAIN = 8
"""Parts into which GPUs are divided for the coarse search, about."""


def closed_form(problem: Problem, keep: int = 10) -> list[Candidate]:
    """The ``keep`` best candidates. Deterministic. Raises ConfigError, also if nothing fits."""
    problem.check()
    works = Works(problem)
    found = _Best(works, keep)
    grain = max(1, problem.num_gpus // GRAIN)
    for roles in role_sets():
        for kinds in product(*(problem.kinds_of(role) for role in roles)):
            for layout in _layouts(roles, kinds, problem.num_gpus, grain):
                found.offer(layout)
    if not found.heap:
        raise ConfigError(
            f"num_gpus: no layout of {problem.num_gpus} GPUs fits the model into these kinds"
        )
    if grain > 1:
        found.climb(grain)
    return ranked(candidate for _, _, candidate in found.heap)


def role_sets() -> list[tuple[Role, ...]]:
    """The families, and the unions of two of them, each set of roles once."""
    order = list(ROLES.values())
    sets = [frozenset(family) for family in FAMILIES]
    sets += [frozenset(one) | frozenset(other) for one, other in combinations(FAMILIES, 2)]
    return [tuple(role for role in order if role in each) for each in dict.fromkeys(sets)]


def counts_of(sizes: tuple[int, ...], num_gpus: int, grain: int = 1) -> Iterator[tuple[int, ...]]:
    """Numbers >= 1 of instances of so many GPUs each that use ``num_gpus`` exactly. All but the
    last are 1 or multiples of ``grain`` in GPUs."""
    *rest, last = sizes
    if not rest:
        if num_gpus >= last and num_gpus % last == 0:
            yield (num_gpus // last,)
        return
    first = sizes[0]
    step = max(1, grain // first)
    numbers = sorted({1, *range(step, num_gpus // first + 1, step)})
    for number in numbers:
        if number * first >= num_gpus:
            break
        for others in counts_of(sizes[1:], num_gpus - number * first, grain):
            yield (number, *others)


def _layouts(
    roles: tuple[Role, ...], kinds: tuple[Kind, ...], num_gpus: int, grain: int
) -> Iterator[Layout]:
    sizes = tuple(kind.num_gpus for kind in kinds)
    for counts in counts_of(sizes, num_gpus, grain):
        yield tuple(
            Pool(role, count, kind) for role, count, kind in zip(roles, counts, kinds, strict=True)
        )


class _Best:
    """The best so far: a heap with the worst of them on top."""

    def __init__(self, works: Works, keep: int) -> None:
        self._works = works
        self._keep = keep
        self._seen: set[tuple[str, tuple[str, ...]]] = set()
        self.heap: list[tuple[float, int, Candidate]] = []

    def offer(self, layout: Layout) -> None:
        """Judge the layout under each budget that can matter, unless it cannot get in."""
        key = written(layout), tuple(pool.kind.name for pool in layout)
        if key in self._seen:
            return
        self._seen.add(key)
        best: Candidate | None = None
        for chunk in self._chunks(layout):
            if self._is_hopeless(layout, chunk):
                continue
            candidate = judged(self._works, layout, chunk)
            if best is None or candidate.score > best.score:
                best = candidate
        if best is not None:
            heapq.heappush(self.heap, (best.score, -len(self._seen), best))
            if len(self.heap) > self._keep:
                heapq.heappop(self.heap)

    def climb(self, grain: int) -> None:
        """From the best layouts on, move instances between pools, ever fewer at a time."""
        step = grain
        while step >= 1:
            before = max(self.heap)[0]
            for _, _, candidate in sorted(self.heap, reverse=True)[:3]:
                for layout in _neighbours(candidate.layout, step):
                    self.offer(layout)
            if max(self.heap)[0] <= before:
                step //= 2

    def _chunks(self, layout: Layout) -> tuple[int, ...]:
        """A smaller budget helps only where decodes share an instance with prefill."""
        chunks = self._works.problem.chunks
        return chunks if any(pool.role >= {P, D} for pool in layout) else (max(chunks),)

    def _is_hopeless(self, layout: Layout, chunk: int) -> bool:
        """Whether even the rate that no queue would survive is too low, as seen from the worst
        that is kept: at that rate attainment is still asked, which costs one estimate."""
        problem = self._works.problem
        if len(self.heap) < self._keep or problem.objective != "goodput":
            return False
        worst = self.heap[0][0]
        made = [self._works.of(pool.kind, chunk) for pool in layout]
        prediction = Prediction(problem, layout, made)
        return prediction.bound <= worst or prediction.at(worst).attainment < problem.level


def _neighbours(layout: Layout, step: int) -> Iterator[Layout]:
    """Layouts of as many GPUs with up to ``step`` GPUs moved from one pool to another."""
    for giver, taker in product(range(len(layout)), repeat=2):
        sizes = layout[giver].kind.num_gpus, layout[taker].kind.num_gpus
        unit = max(sizes)
        if giver == taker or min(sizes) == 0 or unit % min(sizes):
            continue
        moved = unit * max(1, step // unit)
        if layout[giver].num_gpus <= moved:
            continue
        counts = [pool.count for pool in layout]
        counts[giver] -= moved // sizes[0]
        counts[taker] += moved // sizes[1]
        yield tuple(
            Pool(pool.role, count, pool.kind) for pool, count in zip(layout, counts, strict=True)
        )
