"""Who of several pools does how much of a stage, where more than one may.

A router that balances load sends work where there is least of it; this finds the shares in which
that ends. Knows capacities by pool and stage.
"""

from collections.abc import Mapping, Sequence

from triptych.core.lifecycle import Stage

QUANTA = 32
"""Parts into which the work of a stage is cut. Shares are right to one of them."""

Shares = dict[Stage, tuple[float, ...]]
"""By stage, for each pool the share of the stage's work; they sum to 1."""


def balanced(capacity: Sequence[Mapping[Stage, float]]) -> Shares:
    """Shares that make the busiest pool as idle as can be, about.

    ``capacity`` is, for each pool, requests per second of each stage that it serves if it did
    nothing else. Stages with one pool come first; the work of the others is given away in small
    parts, in turns, each to the pool that is least busy with it.
    """
    busy = [0.0] * len(capacity)
    given = {stage: [0.0] * len(capacity) for stage in Stage}
    serves = {
        stage: [index for index, one in enumerate(capacity) if one.get(stage, 0.0) > 0.0]
        for stage in Stage
    }
    for stage, pools in serves.items():
        if len(pools) == 1:
            given[stage][pools[0]] = 1.0
            busy[pools[0]] += 1.0 / capacity[pools[0]][stage]
    free = [stage for stage, pools in serves.items() if len(pools) > 1]
    for _ in range(QUANTA):
        for stage in free:
            best = min(
                serves[stage], key=lambda i: (busy[i] + 1.0 / (QUANTA * capacity[i][stage]), i)
            )
            given[stage][best] += 1.0 / QUANTA
            busy[best] += 1.0 / (QUANTA * capacity[best][stage])
    return {stage: tuple(shares) for stage, shares in given.items()}


def coupled(first: Sequence[float], second: Sequence[float]) -> dict[tuple[int, int], float]:
    """Joint shares of two stages in a row: a request stays in its pool as often as the shares
    allow (nothing is moved then), and what is left is mixed."""
    stay = [min(one, other) for one, other in zip(first, second, strict=True)]
    joint = {(index, index): share for index, share in enumerate(stay) if share > 0.0}
    left = [one - kept for one, kept in zip(first, stay, strict=True)]
    right = [other - kept for other, kept in zip(second, stay, strict=True)]
    rest = sum(left)
    if rest > 1e-12:
        for i, one in enumerate(left):
            for j, other in enumerate(right):
                if one * other > 0.0:
                    joint[i, j] = joint.get((i, j), 0.0) + one * other / rest
    return joint
