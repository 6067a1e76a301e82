"""Two ways to turn pairs are one."""

import pytest
import torch

from triptych.executor.rotary import doubled, frequencies, rotate, rotate_by


@pytest.mark.parametrize("size", [2, 6, 64])
def test_turned_in_fewer_operations(size):
    torch.manual_seed(size)
    x = torch.randn(5, 3, size)
    angles = torch.arange(5)[:, None] * frequencies(100.0, size)
    cosines, sines = angles.cos(), angles.sin()
    wanted = rotate(x, cosines[:, None], sines[:, None])
    found = rotate_by(x, *(part[:, None] for part in doubled(cosines, sines)))
    assert (found - wanted).abs().max() < 1e-6
    assert found[0].equal(x[0]), "at position 0 nothing turns"
    assert not found[1].equal(x[1])
