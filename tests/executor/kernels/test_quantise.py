"""Quantised keys and values against the twin, the wire's codec and float64."""

import numpy as np
import pytest
import torch

from triptych.codec.rows import Fp8, Int8
from triptych.core.errors import InvariantBroken
from triptych.executor.kernels.reference import quantise as twins

pytest.importorskip("triton")
from triptych.executor.kernels.quantise import dequantise_kv, quantise_kv

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
"""Of numpy, in which the interpreter computes: infinities are meant."""

CODES = {torch.int8: Int8(), torch.float8_e4m3fn: Fp8()}
HARD = (0.0, 2.0**-149, 2.0**-126, 2.0**-101, 1e-20, 1.0, 65504.0, 3e38)
"""Largest magnitudes of rows: none, subnormal, below and above what codes can hold."""


def rows(device, dtype, tokens=17, heads=3, size=40):
    x = torch.randn(tokens, heads, size + 1, generator=torch.Generator().manual_seed(1))
    factors = torch.tensor(HARD).repeat(tokens)[:tokens]
    x = x / x.abs().amax(-1, keepdim=True) * factors[:, None, None]
    if dtype == torch.float16:
        x = x.clamp(-65504, 65504)
    return x.to(dtype).to(device)[..., 1:]


def bits(codes):
    return codes.view(torch.uint8).cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("codes", list(CODES))
def test_codes_are_the_twins_and_the_wires(device, dtype, codes):
    x = rows(device, dtype)
    found, scales = quantise_kv(x, codes)
    twin, twin_scales = twins.quantise_kv(x, codes)
    assert torch.equal(bits(found), bits(twin))
    assert torch.equal(scales, twin_scales)
    numbers = np.ascontiguousarray(x.float().cpu().numpy())
    wire = np.empty(numbers.shape, np.uint8)
    wire_scales = np.empty(numbers.shape[:-1], np.float32)
    CODES[codes].encode(numbers, "float32", wire, wire_scales)
    assert np.array_equal(bits(found).numpy(), wire)
    is_zero = (numbers == 0).all(-1)
    assert np.array_equal(scales.cpu().numpy()[~is_zero], wire_scales[~is_zero])
    assert (scales.cpu().numpy()[is_zero] == 1).all()


@pytest.mark.parametrize("codes", list(CODES))
def test_the_way_back(device, codes):
    x = rows(device, torch.float32)
    found, scales = quantise_kv(x, codes)
    back = dequantise_kv(found, scales, torch.float32)
    assert torch.equal(back, twins.dequantise_kv(found, scales, torch.float32))
    assert torch.equal(back, found.float() * scales[..., None])
    largest = x.abs().amax(-1, keepdim=True).double()
    if codes == torch.int8:
        bound = largest / 253
    else:
        bound = torch.maximum(x.abs().double() / 16.9, largest / 458_000)
    error = (back.double() - x.double()).abs()
    assert (error <= bound.clamp(min=2.0**-100)).all()  # the bounds of codec.rows
    half = dequantise_kv(found, scales, torch.float16, out=torch.empty_like(x, dtype=torch.half))
    assert torch.equal(half, back.half())


@pytest.mark.parametrize("codes", list(CODES))
def test_every_code_and_every_tie_is_rounded_as_torch_does(device, codes):
    """A row whose scale is 1 holds every number and every middle between two."""
    most = twins.LARGEST[codes]
    if codes == torch.int8:
        values = torch.arange(-127, 127.5, 0.5)
    else:
        known = torch.arange(127, dtype=torch.uint8).view(codes).float()
        values = torch.cat([known, -known, (known[1:] + known[:-1]) / 2])
    found, scales = quantise_kv(values.to(device)[None, None], codes)
    assert scales.item() == 1
    wanted = values.to(codes) if codes != torch.int8 else values.round().to(codes)
    assert torch.equal(bits(found)[0, 0], bits(wanted))
    assert values.abs().max() == most


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("codes", list(CODES))
def test_a_broken_row_stays_visibly_so_and_is_alone(device, codes, bad):
    x = rows(device, torch.float32, tokens=3)
    clean, clean_scales = quantise_kv(x, codes)
    x[1, 1, 7] = bad
    found, scales = quantise_kv(x, codes)
    assert scales[1, 1].isnan()
    others = torch.ones(3, 3, dtype=torch.bool)
    others[1, 1] = False
    assert torch.equal(scales.cpu()[others], clean_scales.cpu()[others])
    assert torch.equal(bits(found)[others], bits(clean)[others])


def test_what_does_not_fit_is_refused(device):
    x = rows(device, torch.float32)
    codes, scales = quantise_kv(x, torch.int8)
    for call in (
        lambda: quantise_kv(x, torch.uint8),
        lambda: quantise_kv(x[0], torch.int8),
        lambda: quantise_kv(x.transpose(1, 2), torch.int8),
        lambda: quantise_kv(x, torch.int8, out=(codes, scales[:1])),
        lambda: dequantise_kv(codes, scales[:, :1], torch.float32),
        lambda: dequantise_kv(codes.float(), scales, torch.float32),
    ):
        with pytest.raises(InvariantBroken):
            call()
