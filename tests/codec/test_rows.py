"""The stated errors of INT8 and FP8, for any numbers; codes against torch's own e4m3fn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.codec.drawn import DTYPES, FINITE, read, rows, stored
from triptych.codec.rows import _E4M3, Fp8, Int8

FLOOR = 2.0**-100
ROWS = {"int8": Int8(), "fp8": Fp8()}


def round_trip(name, values, dtype="float32", to="float32"):
    codes = np.zeros(values.shape, np.uint8)
    scales = np.zeros(values.shape[:-1], np.float32)
    ROWS[name].encode(values, dtype, codes, scales)
    target = stored(np.zeros(values.shape, np.float32), to)
    ROWS[name].decode(codes, scales, target, to)
    return target


def bound(name, exact):
    """What the docstring promises for each number."""
    most = np.abs(exact).max(axis=-1, keepdims=True)
    if name == "int8":
        return np.maximum(np.broadcast_to(most / 253, exact.shape), FLOOR)
    return np.maximum(np.maximum(np.abs(exact) / 16.9, most / 458_000), FLOOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(ROWS))
@given(array=rows())
def test_no_number_is_further_off_than_stated(name, dtype, array):
    values = stored(np.clip(array, -65504, 65504) if dtype == "float16" else array, dtype)
    exact = read(values, dtype)
    if not np.isfinite(exact).all():
        exact = np.clip(exact, -3.3e38, 3.3e38)
        values = stored(exact.astype(np.float32), dtype)
        exact = read(values, dtype)
    off = np.abs(read(round_trip(name, values, dtype), "float32") - exact)
    assert (off <= bound(name, exact)).all()


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", sorted(ROWS))
@given(array=rows(st.floats(-1000, 1000, width=32)))
def test_the_last_dtype_only_adds_its_own_rounding(name, to, array):
    wide = round_trip(name, array)
    assert round_trip(name, array, to=to).tobytes() == stored(wide, to).tobytes()


@pytest.mark.parametrize("name", sorted(ROWS))
@given(array=rows(), at=st.integers(0, 10**6), what=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_broken_row_comes_back_broken_and_harms_no_other(name, array, at, what):
    flat = array.reshape(-1, array.shape[-1])
    row = at % len(flat)
    whole = round_trip(name, flat)
    flat[row, at % flat.shape[1]] = what
    result = round_trip(name, flat)
    assert np.isnan(result[row]).all()
    others = np.arange(len(flat)) != row
    assert result[others].tobytes() == whole[others].tobytes()


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_largest_number_of_a_row_survives(name):
    largest = np.finfo(np.float32).max
    values = np.array([[1.5, -0.25], [largest, -largest], [0, -0.0], [FLOOR / 3, 0]], np.float32)
    result = round_trip(name, values)
    assert result[0, 0] == 1.5
    assert np.isfinite(result).all()
    assert abs(result[1, 0] / largest - 1) < 1e-6
    assert (result[2] == 0).all()


@pytest.mark.parametrize("name", sorted(ROWS))
@given(array=rows(FINITE))
def test_what_was_written_once_is_written_the_same_again(name, array):
    """A second trip through the format changes no more than float32 rounding of the scale."""
    once = round_trip(name, array)
    twice = round_trip(name, once)
    most = np.abs(once).max(axis=-1, keepdims=True)
    assert (np.abs(twice.astype(np.float64) - once) <= np.maximum(most * 2.0**-20, FLOOR)).all()


def test_fp8_codes_are_those_of_torch():
    assert np.array_equal(
        torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float().numpy(),
        _E4M3, equal_nan=True,
    )  # fmt: skip
    rng = np.random.default_rng(7)
    units = rng.standard_normal((259, 63)) * 2.0 ** rng.integers(-12, 7, (259, 63))
    units = np.concatenate([np.clip(units, -448, 448), np.full((259, 1), 448)], axis=1)
    middles = np.array([(_E4M3[:126].astype(np.float64) + _E4M3[1:127]) / 2, _E4M3[:126]])
    for values in (
        units.astype(np.float32),
        np.pad(middles, ((0, 0), (0, 1)), constant_values=448),
    ):
        values = values.astype(np.float32)
        codes = np.zeros(values.shape, np.uint8)
        scales = np.zeros(len(values), np.float32)
        Fp8().encode(values, "float32", codes, scales)
        assert (scales == 1).all()
        wanted = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        assert (codes == wanted).all()
