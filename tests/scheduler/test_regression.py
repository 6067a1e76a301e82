"""Least squares that stay above zero."""

from random import Random

import pytest

from scheduler.regression import Sums, non_negative


def rows(truth, count, noise=0.0, seed=1):
    random = Random(seed)
    for _ in range(count):
        features = [random.uniform(0, 10**power) for power in range(len(truth))]
        value = sum(f * t for f, t in zip(features, truth, strict=True))
        yield features, value * random.gauss(1, noise)


def test_exact_rows_give_the_exact_coefficients():
    sums, truth = Sums(4), [3.0, 0.0, 0.25, 2e-3]
    for features, value in rows(truth, 50):
        sums.add(features, value)
    assert sums.solve([1.0] * 4, 1e-12) == pytest.approx(truth, rel=1e-6, abs=1e-6)


def test_what_would_be_negative_is_zero_and_the_rest_best_without_it():
    sums = Sums(2)
    for x in range(1, 20):
        sums.add([1.0, x], 10.0 - 0.4 * x)
    start, slope = sums.solve([0.0, 0.0], 1e-12)
    assert slope == 0.0
    assert start == pytest.approx(sum(10.0 - 0.4 * x for x in range(1, 20)) / 19)


def test_the_minimum_is_one():
    """At the solution no allowed direction goes down (Karush-Kuhn-Tucker)."""
    random = Random(5)
    for size in (1, 2, 5, 9):
        for _ in range(20):
            half = [[random.gauss(0, 1) for _ in range(size)] for _ in range(size)]
            matrix = [
                [
                    sum(a * b for a, b in zip(x, y, strict=True)) + (i == j)
                    for j, y in enumerate(half)
                ]
                for i, x in enumerate(half)
            ]
            vector = [random.gauss(0, 3) for _ in range(size)]
            x = non_negative(matrix, vector)
            for i in range(size):
                slope = sum(matrix[i][j] * x[j] for j in range(size)) - vector[i]
                assert x[i] >= 0.0
                assert slope == pytest.approx(0.0, abs=1e-8) if x[i] else slope > -1e-8


def test_features_that_were_never_seen_keep_the_prior():
    sums = Sums(3)
    for features, value in rows([2.0, 5.0], 30):
        sums.add([*features, 0.0], value)
    assert sums.solve([9.0, 9.0, 7.0], 1e-9) == pytest.approx([2.0, 5.0, 7.0], rel=1e-5)


def test_features_that_moved_together_add_up_and_split_as_the_prior():
    sums = Sums(2)
    for x in range(1, 40):
        sums.add([x, x], 6.0 * x)
    assert sums.solve([1.0, 3.0], 1e-6) == pytest.approx([2.0, 4.0], rel=1e-4)


def test_faded_rows_count_less():
    sums = Sums(1)
    sums.add([1.0], 1.0)
    sums.fade(0.25)
    sums.add([1.0], 6.0)
    assert sums.solve([0.0], 0.0 + 1e-12) == pytest.approx([(0.25 + 6.0) / 1.25])
    assert sums.plus(sums).weight == pytest.approx(2.5)
