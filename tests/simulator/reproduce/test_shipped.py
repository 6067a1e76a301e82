"""The shipped targets: all there, readable, and with the bands that were fixed before any run."""

import pytest

from simulator.reproduce.runner import check_names
from simulator.reproduce.target import read_all
from tests.house.sources import ROOT

TARGETS = {target.number: target for target in read_all(ROOT / "examples" / "reproduce")}

BANDS = {
    1: [(1.56 * 0.85, 1.56 * 1.15), (0.97, 1.0)],
    2: [(None, 0.02), (None, 0.002)],
    3: [(1.3, 2.2), (1.8, 3.2), (2.2, 4.0), (2.0, 5.0)],
    4: [(0.46, 0.68), (0.30, 0.56), (0.25, 0.48), (0.25, 0.42)],
    5: [(1.6, 2.8), (4, None)],
    6: [(1.3, None), (2, None)],
    7: [(0.95, None)],
    8: [(0.6, 0.8), (0.6, 0.8), (0.6, 0.8), (0.94, None), (1.0, None)],
    9: [(None, 0.8), (1.0, None)],
    10: [(1.5, None), (1.0, None)],
    11: [(None, 0.5), (None, 1.05), (None, 1.0)],
    12: [(None, 1.0)],
    13: [(36.55, 36.65)],
    14: [(0.95, None), (None, 0.25)],
}
"""Low and high end of each check. Where a source gives no band, 20 % around what it reports."""


@pytest.mark.parametrize("number", sorted(BANDS))
def test_bands_stay_as_they_were_fixed(number):
    found = [(check.low, check.high) for check in TARGETS[number].checks]
    assert len(found) == len(BANDS[number])
    for (low, high), (least, most) in zip(found, BANDS[number], strict=True):
        assert low == (None if least is None else pytest.approx(least, rel=0.005))
        assert high == (None if most is None else pytest.approx(most, rel=0.005))


@pytest.mark.parametrize("number", sorted(TARGETS))
def test_every_target_names_what_there_is(number):
    target = TARGETS[number]
    check_names(target)
    for check in target.checks:
        case = target.case_of(check)
        assert target.systems(case, check.of)
        assert not check.to or target.systems(case, check.to)
        assert check.published is None or check.is_within(check.published) or check.miss, check.says
    assert target.claim
    assert target.setting
    assert all(scenario.drain_s > 0 for scenario in target.scenarios.values())


def test_no_target_but_these():
    assert set(TARGETS) == set(BANDS)
    names = sorted(path.name for path in (ROOT / "examples" / "reproduce").glob("*.toml"))
    assert [int(name[:2]) for name in names] == sorted(TARGETS)
