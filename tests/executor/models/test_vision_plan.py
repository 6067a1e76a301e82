import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from triptych.executor.models.vision_plan import Run, plan_patches

GRIDS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)).map(
        lambda grid: (grid[0], 2 * grid[1], 2 * grid[2])
    ),
    min_size=1,
    max_size=4,
)


def spans(runs: tuple[Run, ...]) -> list[tuple[int, int]]:
    return [
        (run.first + index * run.length, run.length) for run in runs for index in range(run.spans)
    ]


@settings(max_examples=50, deadline=None)
@given(GRIDS, st.integers(1, 5))
def test_windows_hold_the_patches_that_transformers_puts_together(grids, window):
    plan = plan_patches(grids, 2, window)
    order, bounds = get_vision_window_index(torch.tensor(grids), 2, window * 28, 14)
    order = (order[:, None] * 4 + torch.arange(4)).flatten().numpy()
    theirs = {
        tuple(order[a:b]) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    }
    ours = {tuple(plan.order[first : first + size]) for first, size in spans(plan.windows)}
    assert ours == theirs


@settings(max_examples=50, deadline=None)
@given(GRIDS, st.integers(0, 5))
def test_orders_places_and_frames(grids, window):
    plan = plan_patches(grids, 2, window)
    count = sum(frames * height * width for frames, height, width in grids)
    assert sorted(plan.order) == list(range(count))
    places = get_vision_position_ids(torch.tensor(grids), 2).T.numpy()
    assert np.array_equal(plan.places, places[:, plan.order])
    tokens = plan.order.reshape(-1, 4)[plan.restore]
    assert np.array_equal(tokens.reshape(-1), np.arange(count))
    wanted, first = [], 0
    for frames, height, width in grids:
        for _ in range(frames):
            wanted.append((first, height * width))
            first += height * width
    assert spans(plan.whole) == wanted
    for first, size in wanted:
        assert sorted(plan.order[first : first + size]) == list(range(first, first + size))
    if window == 0:
        assert plan.windows == plan.whole


@pytest.mark.parametrize(("side", "runs"), [(8, 1), (9, 3), (32, 1)])
def test_equal_windows_are_one_run(side: int, runs: int):
    assert len(plan_patches([(1, 2 * side, 2 * side)] * 3, 2, 4).windows) == {1: 1, 3: 9}[runs]
