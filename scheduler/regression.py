"""Least squares with coefficients that are not negative, from sums that can be added to and can
fade.

Knows vectors of a few features and no units. Plain floats: a dozen features at most.
"""

from collections.abc import Sequence

TINY = 1e-12


class Sums:
    """What rows ``features -> value`` add up to: the normal equations of weighted least squares.

    Nothing else of the rows is kept, so learning takes no memory and forgetting is one product.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.products = [[0.0] * size for _ in range(size)]
        self.values = [0.0] * size
        self.weight = 0.0

    def add(self, features: Sequence[float], value: float, weight: float = 1.0) -> None:
        """One row."""
        used = [index for index, each in enumerate(features) if each]
        for index in used:
            scaled = weight * features[index]
            self.values[index] += scaled * value
            row = self.products[index]
            for other in used:
                row[other] += scaled * features[other]
        self.weight += weight

    def fade(self, share: float) -> None:
        """All rows so far count ``share`` of what they did."""
        self.weight *= share
        self.values = [share * each for each in self.values]
        self.products = [[share * each for each in row] for row in self.products]

    def plus(self, other: "Sums") -> "Sums":
        """Of both one's rows."""
        both = Sums(self.size)
        both.weight = self.weight + other.weight
        both.values = _added(self.values, other.values)
        both.products = list(map(_added, self.products, other.products))
        return both

    def solve(self, prior: Sequence[float], strength: float) -> list[float]:
        """The coefficients >= 0 that are nearest in squares, drawn to ``prior`` with ``strength``
        of each feature's own sum of squares: next to nothing where the rows say something, and all
        there is where they do not."""
        matrix, vector = [list(row) for row in self.products], list(self.values)
        for index in range(self.size):
            pull = strength * self.products[index][index] or 1.0
            matrix[index][index] += pull
            vector[index] += pull * prior[index]
        return non_negative(matrix, vector)


def non_negative(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    """``x >= 0`` with the least ``x.matrix.x / 2 - vector.x``, ``matrix`` positive definite: the
    active-set method of Lawson and Hanson 1974, chapter 23, on normal equations."""
    size = len(vector)
    scale = [matrix[index][index] ** -0.5 for index in range(size)]
    unit = [
        [matrix[row][column] * scale[row] * scale[column] for column in range(size)]
        for row in range(size)
    ]
    goal = [vector[index] * scale[index] for index in range(size)]
    least = TINY * max(map(abs, goal), default=0.0)
    x, free = [0.0] * size, set[int]()
    for _ in range(3 * size):
        slope = [goal[row] - _dot(unit[row], x) for row in range(size)]
        held = [index for index in range(size) if index not in free and slope[index] > least]
        if not held:
            break
        free.add(max(held, key=slope.__getitem__))
        _settle(unit, goal, x, free)
    return [x[index] * scale[index] for index in range(size)]


def _settle(
    matrix: Sequence[Sequence[float]], vector: Sequence[float], x: list[float], free: set[int]
) -> None:
    """Moves ``x`` to the best over ``free``; an entry that would turn negative stops at 0 and is
    free no more."""
    while free:
        order = sorted(free)
        target = _eliminate(
            [[matrix[row][column] for column in order] for row in order],
            [vector[row] for row in order],
        )
        if all(each > 0.0 for each in target):
            for index, value in zip(order, target, strict=True):
                x[index] = value
            return
        blocked = [
            (x[index] / (x[index] - value), index)
            for index, value in zip(order, target, strict=True)
            if value <= 0.0
        ]
        step = min(share for share, _ in blocked) if blocked else 1.0
        for index, value in zip(order, target, strict=True):
            x[index] += step * (value - x[index])
        gone = {index for share, index in blocked if share <= step}
        for index in gone:
            x[index] = 0.0
        free -= gone


def _eliminate(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """Solves a positive definite system by Gauss; no pivoting is needed."""
    size = len(vector)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
            vector[row] -= factor * vector[pivot]
    for pivot in reversed(range(size)):
        for column in range(pivot + 1, size):
            vector[pivot] -= matrix[pivot][column] * vector[column]
        vector[pivot] /= matrix[pivot][pivot]
    return vector


def _added(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [one + other for one, other in zip(left, right, strict=True)]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(one * other for one, other in zip(left, right, strict=True))
