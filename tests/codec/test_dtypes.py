"""Conversion of dtypes against torch, which has them all, bit by bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from triptych.codec.dtypes import STORAGE, convert, tiles

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES = sorted(TORCH)
ANY_BITS = arrays.arrays(np.uint32, arrays.array_shapes(min_dims=2, max_side=7))


def as_torch(array, dtype):
    signed = array.view(f"i{array.itemsize}")
    return torch.from_numpy(signed.copy()).view(TORCH[dtype])


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).numpy()


@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("source_dtype", DTYPES)
@given(seed=ANY_BITS)
def test_every_bit_pattern_converts_as_torch_does(source_dtype, target_dtype, seed):
    source = (seed >> (0 if source_dtype == "float32" else 16)).astype(
        f"u{STORAGE[source_dtype].itemsize}"
    ).view(STORAGE[source_dtype])  # fmt: skip
    target = np.zeros(source.shape, STORAGE[target_dtype])
    convert(source, source_dtype, target, target_dtype)
    ours = as_torch(target, target_dtype)
    theirs = as_torch(source, source_dtype).to(TORCH[target_dtype])
    broken = torch.isnan(theirs)
    assert torch.equal(torch.isnan(ours), broken)
    assert (bits(ours)[~broken.numpy()] == bits(theirs)[~broken.numpy()]).all()
    if source_dtype == target_dtype:
        assert target.tobytes() == source.tobytes()


def test_all_halves_of_two_bytes_round_to_even_in_bfloat16():
    """Every float32 whose lower half is just below, at and just above the middle."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0x0000, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        source = (upper | lower).view(np.float32).reshape(256, 256)
        target = np.empty(source.shape, np.uint16)
        convert(source, "float32", target, "bfloat16")
        wanted = as_torch(source, "float32").bfloat16()
        numbers = ~np.isnan(source)
        assert (target.view(np.int16)[numbers] == bits(wanted)[numbers]).all()
        assert torch.isnan(as_torch(target, "bfloat16"))[~numbers].all()


@given(
    shape=arrays.array_shapes(min_dims=2, max_dims=6, max_side=5, min_side=0),
    most=st.integers(1, 60),
)
def test_tiles_cover_an_array_once_and_stay_small(shape, most):
    seen = np.zeros(shape, np.int64)
    for index in tiles(shape, most):
        seen[index] += 1
        assert seen[index].size <= max(most, shape[-1])
        assert seen[index].shape[-1:] == shape[-1:]
    assert (seen == 1).all()


def test_strided_source_and_target():
    source = np.arange(7 * 6 * 10, dtype=np.float32).reshape(7, 6, 10)[:, ::2, 1:6] / 3
    target = np.zeros((7, 9, 5), np.uint16)[:, 1:8:3]
    convert(source, "float32", target, "bfloat16")
    wanted = torch.from_numpy(np.ascontiguousarray(source)).bfloat16()
    assert (target.view(np.int16) == bits(wanted)).all()
