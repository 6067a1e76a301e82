"""What Linux says of its slices, and what is taken where it says nothing."""

import gzip

import pytest

from simulator.profile import slices as module
from simulator.profile.slices import slices


@pytest.mark.parametrize(
    ("cores", "slice_s"), [(1, 0.0007), (2, 0.0014), (3, 0.0014), (4, 0.0021), (64, 0.0028)]
)
def test_slices_grow_with_the_cores_up_to_eight(cores, slice_s):
    found_s, tick_s = slices("Linux", "6.18.44-generic", cores)
    assert found_s == pytest.approx(slice_s)
    assert 0.0005 < tick_s <= 0.01


@pytest.mark.parametrize(("system", "release"), [("Linux", "5.15.0"), ("Darwin", "24.1"), ("", "")])
def test_there_are_none_where_the_rule_is_another(system, release, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Other")
    assert slices(system, release or "7.0", 2)[0] == 0.0


def test_ticks_are_read_where_the_kernel_keeps_its_configuration(tmp_path):
    kept = tmp_path / "config.gz"
    kept.write_bytes(gzip.compress(b"CONFIG_HZ_1000=y\nCONFIG_HZ=1000\n"))
    assert module._ticks(kept) == 1000.0
    kept.write_bytes(b"no archive")
    assert module._ticks(kept) == module._ticks(tmp_path / "none") == module.USUAL_HZ
