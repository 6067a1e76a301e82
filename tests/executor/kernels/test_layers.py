"""Norms, gates and rotary positions against their twins and against float64."""

import pytest
import torch

from triptych.core.errors import InvariantBroken
from triptych.executor.kernels.reference import layers as twins
from triptych.executor.rotary import frequencies, rotate

pytest.importorskip("triton")
from triptych.executor.kernels.norm import rms_norm
from triptych.executor.kernels.rotary import mrope_angles, rotate_, rotate_and_write
from triptych.executor.kernels.swiglu import silu_mul

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
"""Of numpy, in which the interpreter computes: infinities are meant."""

# Relative to the largest number: float32 differs in the order of sums and in exp's last bits; the
# others by one unit in the last place, for the interpreter cuts bfloat16 where a GPU rounds.
CLOSE = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
DTYPES = list(CLOSE)


def normal(*shape, dtype=torch.float32, seed=0, device="cpu"):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).to(device)


def agree(found, wanted, dtype):
    found, wanted = found.double(), wanted.double()
    bound = CLOSE[dtype] * torch.maximum(wanted.abs(), wanted.abs().max() / 64) + 1e-30
    assert ((found - wanted).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (7, 17), (3, 259), (2, 1280), (2, 3584)])
@pytest.mark.parametrize("is_added", [False, True])
def test_rms_norm(device, dtype, tokens, width, is_added):
    wide = normal(tokens, width + 5, dtype=dtype, device=device)
    x, weight = wide[:, 2 : width + 2], normal(width, dtype=dtype, seed=1, device=device)
    stream = normal(tokens, width, dtype=dtype, seed=2, device=device) if is_added else None
    again = stream.clone() if is_added else None
    found = rms_norm(x, weight, 1e-6, residual=stream)
    wanted = twins.rms_norm(x, weight, 1e-6, residual=again)
    if is_added:
        assert torch.equal(wanted, twins.rms_norm(again, weight, 1e-6))
        wanted = twins.rms_norm(stream, weight, 1e-6)
    agree(found, wanted, dtype)
    exact = x.double()
    if is_added:
        agree(stream, again, dtype)
        agree(stream, exact + normal(tokens, width, dtype=dtype, seed=2, device=device), dtype)
        exact = stream.double()
    exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    agree(found, exact, dtype)


@pytest.mark.parametrize("width", [5120, 8192])
def test_rms_norm_in_place_and_row_by_row(device, width):
    x, weight = normal(3, width, device=device), normal(width, seed=1, device=device)
    alone = [rms_norm(row[None], weight, 1e-5) for row in x]
    assert rms_norm(x, weight, 1e-5, out=x) is x
    assert torch.equal(x, torch.cat(alone))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "inner"), [(1, 1), (7, 17), (2, 1259)])
def test_silu_mul(device, dtype, tokens, inner):
    both = 4 * normal(tokens, 2 * inner + 3, dtype=dtype, device=device)[:, 1 : 2 * inner + 1]
    both[0, 0] = -200.0  # exp(200) is infinite
    found = silu_mul(both)
    agree(found, twins.silu_mul(both), dtype)
    gate, up = both.double().chunk(2, dim=-1)
    agree(found, gate * torch.sigmoid(gate) * up, dtype)
    out = torch.full((tokens, inner + 1), 7.0, dtype=dtype, device=device)
    silu_mul(both, out=out[:, :inner])
    assert torch.equal(out[:, :inner], found)
    assert (out[:, inner] == 7).all()


def case(device, dtype, tokens, heads, kv_heads, size, seed=0):
    width = (heads + 2 * kv_heads) * size
    qkv = normal(tokens, width + 3, dtype=dtype, seed=seed, device=device)[:, 1 : width + 1]
    angles = torch.arange(tokens)[:, None] * frequencies(1e4, size)
    slots = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:tokens]
    if tokens > 2:
        slots[1] = -1
    return qkv, angles.cos().to(device), angles.sin().to(device), slots.to(device)


def memory(device, dtype, kv_heads, size, block_size=8):
    """Layer 1 of a store full of NaN, and scales of it."""
    store = torch.full((5, 2, 2, block_size, kv_heads, size), 0x7F, device=device)
    store = store.to(torch.uint8).view(torch.float8_e4m3fn) if dtype.itemsize == 1 else store
    store = store.view(dtype) if dtype == torch.int8 else store
    if dtype.itemsize > 1:
        store = torch.full(store.shape, float("nan"), dtype=dtype, device=device)
    return store[:, 1, 0], store[:, 1, 1], store


def scales_for(keys):
    both = torch.full((*keys.shape[:2], 2, keys.shape[2]), -1.0, device=keys.device)
    return both[:, :, 0], both[:, :, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "size"), [(1, 1, 1, 2), (5, 14, 2, 80), (3, 9, 9, 16)]
)
def test_rotate_and_write(device, dtype, tokens, heads, kv_heads, size):
    qkv, cosines, sines, slots = case(device, dtype, tokens, heads, kv_heads, size)
    before = qkv.clone()
    keys, values, store = memory(device, dtype, kv_heads, size)
    twin_keys, twin_values, twin_store = memory(device, dtype, kv_heads, size)
    found = rotate_and_write(qkv, cosines, sines, keys, values, slots)
    wanted = twins.rotate_and_write(qkv, cosines, sines, twin_keys, twin_values, slots)
    agree(found, wanted, dtype)
    assert torch.equal(qkv, before)
    assert torch.equal(store.isnan(), twin_store.isnan())
    agree(store.nan_to_num(), twin_store.nan_to_num(), dtype)
    parts = qkv.double().unflatten(1, (-1, size))
    exact = rotate(parts[:, :-kv_heads], cosines.double()[:, None], sines.double()[:, None])
    agree(found, exact[:, :heads], dtype)
    taken = slots >= 0
    written = keys.reshape(-1, kv_heads, size)[slots[taken]]
    agree(written, exact[taken][:, heads:], dtype)
    assert torch.equal(
        values.reshape(-1, kv_heads, size)[slots[taken]], parts[taken][:, -kv_heads:].to(dtype)
    )


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_and_write_codes_are_the_twins_bit_for_bit(device, codes, dtype):
    qkv, cosines, sines, slots = case(device, dtype, 5, 9, 3, 20)
    qkv[3] = 0
    keys, values, store = memory(device, codes, 3, 20)
    twin_keys, twin_values, twin_store = memory(device, codes, 3, 20)
    scales, twin_scales = scales_for(keys), scales_for(keys)
    rotate_and_write(
        qkv, cosines, sines, keys, values, slots.int(),
        key_scales=scales[0], value_scales=scales[1],
    )  # fmt: skip
    twins.rotate_and_write(
        qkv, cosines, sines, twin_keys, twin_values, slots,
        key_scales=twin_scales[0], value_scales=twin_scales[1],
    )  # fmt: skip
    assert torch.equal(store.view(torch.uint8), twin_store.view(torch.uint8))
    assert torch.equal(scales[0], twin_scales[0])
    assert torch.equal(scales[1], twin_scales[1])
    assert (scales[0] != -1).sum() == 4 * 3


def test_rotate_and_write_does_not_see_other_tokens(device):
    qkv, cosines, sines, slots = case(device, torch.float32, 5, 3, 1, 8)
    keys, values, store = memory(device, torch.float32, 1, 8)
    together = rotate_and_write(qkv, cosines, sines, keys, values, slots)
    stored = store.clone()
    store.fill_(float("nan"))
    for row in range(5):
        part = slice(row, row + 1)
        alone = rotate_and_write(qkv[part], cosines[part], sines[part], keys, values, slots[part])
        assert torch.equal(alone[0], together[row])
    assert torch.equal(store.nan_to_num(9.0), stored.nan_to_num(9.0))


def test_rotate_and_write_refuses_what_does_not_fit(device):
    qkv, cosines, sines, slots = case(device, torch.float32, 5, 3, 1, 8)
    keys, values, _ = memory(device, torch.float32, 1, 8)
    codes = keys.to(torch.int8)
    wrong = [
        (qkv[:, :-1], cosines, sines, keys, values, slots),
        (qkv, cosines[:4], sines, keys, values, slots),
        (qkv, cosines, sines, keys, values[:4], slots),
        (qkv, cosines, sines, keys, values, slots[:4]),
        (qkv, cosines, sines, keys, values, slots.float()),
        (qkv, cosines, sines, keys.transpose(2, 3), values.transpose(2, 3), slots),
        (qkv, cosines, sines, codes, codes, slots),
    ]
    for arguments in wrong:
        with pytest.raises(InvariantBroken):
            rotate_and_write(*arguments)
    with pytest.raises(InvariantBroken):
        rotate_and_write(qkv, cosines, sines, keys, values, slots, key_scales=keys[..., 0])
    for call in (
        lambda: rms_norm(qkv, qkv[0, :-1], 1e-6),
        lambda: rms_norm(qkv, qkv[0], 1e-6, residual=qkv[:1]),
        lambda: rms_norm(qkv.t(), qkv[:, 0], 1e-6),
        lambda: silu_mul(qkv[:, :7]),
        lambda: silu_mul(qkv[:, :8], out=qkv[:, :3]),
        lambda: rotate_(qkv.view(5, 1, 5, 8), cosines, sines),
        lambda: mrope_angles(slots[None], cosines[0], slots[:4]),
    ):
        with pytest.raises(InvariantBroken):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "size"), [(1, 1, 2), (7, 9, 80)])
def test_rotate_in_place(device, dtype, tokens, heads, size):
    qkv = normal(tokens, 3, heads, size, dtype=dtype, device=device)
    again, exact = qkv.clone(), qkv.double()
    angles = normal(tokens, size // 2, seed=1, device=device)
    assert rotate_(qkv, angles.cos(), angles.sin()) is qkv
    agree(qkv, twins.rotate_(again, angles.cos(), angles.sin()), dtype)
    cosines, sines = angles.cos().double(), angles.sin().double()
    exact[:, :2] = rotate(exact[:, :2], cosines[:, None, None], sines[:, None, None])
    agree(qkv, exact, dtype)
    assert torch.equal(qkv[:, 2], again[:, 2])


@pytest.mark.parametrize("tokens", [1, 19])
def test_mrope_angles(device, tokens):
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 40_000, (3, tokens), generator=generator).to(device)
    turns = frequencies(1e6, 48).to(device)
    axes = torch.arange(3).repeat_interleave(torch.tensor([4, 8, 12])).to(device)
    found = mrope_angles(positions, turns, axes)
    # The same float32 angle; cosines and sines to a few units in the last place of 1.
    for part, wanted in zip(found, twins.mrope_angles(positions, turns, axes), strict=True):
        assert (part - wanted).abs().max() < 3e-7
    # An angle in float32 may itself be off by 40,000 * 2**-24.
    angles = positions.double()[axes].t() * turns.double()
    assert (found[0] - angles.cos()).abs().max() < 4e-3
    assert (found[1] - angles.sin()).abs().max() < 4e-3
