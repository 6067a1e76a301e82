import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from tests.executor.driver import scene
from triptych.executor.positions import rope_positions, shift_behind

PIECES = st.lists(
    st.tuples(st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9))), max_size=5
)


class Config:
    class vision_config:
        spatial_merge_size = 2
        tokens_per_second = 2


def theirs(prompt) -> torch.Tensor:
    """Positions by Transformers."""
    ids = torch.tensor([prompt.token_ids])
    kinds = torch.zeros_like(ids)
    for item in prompt.items:
        kinds[:, item.offset : item.end] = 1
    model = Qwen2_5_VLModel.__new__(Qwen2_5_VLModel)
    torch.nn.Module.__init__(model)
    model.config = Config
    grids = torch.tensor([item.grid for item in prompt.items]) if prompt.items else None
    return model.get_rope_index(ids, kinds, image_grid_thw=grids)[0][:, 0]


@settings(max_examples=60, deadline=None)
@given(PIECES, st.integers(1, 20), st.data())
def test_every_slice_is_transformers(pieces, behind, data):
    flat = [part for pair in pieces for part in pair]
    prompt = scene(random.Random(0), [*flat, behind], 7).prompt
    whole = theirs(prompt).numpy()
    start = data.draw(st.integers(0, len(prompt) - 1))
    end = data.draw(st.integers(start + 1, len(prompt)))
    needed = [item for item in prompt.items if item.offset < end]
    assert np.array_equal(rope_positions(needed, start, end, 2), whole[:, start:end])


def test_behind_the_prompt_positions_go_on():
    prompt = scene(random.Random(0), [4, (3, 5), 2], 7).prompt
    assert shift_behind(prompt.items, 2) == 5 - 15
    after = rope_positions(prompt.items, len(prompt), len(prompt) + 3, 2)
    assert after.tolist() == [[11, 12, 13]] * 3


@pytest.mark.parametrize("frames", [1, 3])
def test_frames_have_their_own_time(frames: int):
    item = scene(random.Random(0), [1, (2, 3)], 7).prompt.items[0]
    grid = (frames, *item.grid[1:])
    film = type(item)(item.key, item.offset, item.num_tokens * frames, grid)
    times = rope_positions([film], film.offset, film.end, 2)[0]
    assert times.tolist() == [1 + frame for frame in range(frames) for _ in range(6)]
