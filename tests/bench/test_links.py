"""The table of links: medians, spread, and shares of what was measured in the same turn."""

import pytest

from bench.links import Link, Run, main, share, spread, table
from tests.patience import PATIENCE_S


def run(copy, shm, bare, tcp):
    rates = {"memcpy": copy, "socket": bare, "shm": shm, "tcp": tcp}
    return Run(tuple(Link(way, (1e-4,), {1 << 20: given}, "") for way, given in rates.items()))


RUNS = (
    run((10e9, 4e9, 8e9), (9e9, 3.6e9, 4e9), (2e9, 2e9, 2e9), (1e9, 1e9, 2e9)),
    run((10e9,), (9e9,), (2e9,), (1e9,)),
)


def test_a_share_is_of_the_same_turn():
    """A busy moment that slowed both by the same is no difference."""
    assert share(RUNS, "shm", 1 << 20) == 0.9
    assert share(RUNS, "tcp", 1 << 20) == 0.5


def test_the_table_has_a_line_per_way():
    lines = table(RUNS, "on").splitlines()
    assert lines[0] == "Digest on:"
    assert lines[2].startswith("| way | 4 KiB, us | 1 MiB, GB/s |")
    assert lines[6] == "| shm | 100 (100-100) | 6.50 (3.60-9.00) 90% |"
    assert lines[4] == "| memcpy | 100 (100-100) | 9.00 (4.00-10.00) |"


def test_a_way_that_broke_says_why():
    broken = Run((*RUNS[0].links, Link("nixl", (), {}, "the peer is silent")))
    assert "| nixl | the peer is silent |  |" in table([broken], "off")


def test_spread():
    assert spread([1, 3, 2]) == "2.00 (1.00-3.00)"


@pytest.mark.slow
def test_real_links_are_measured(tmp_path, capsys):
    words = ["--sizes", "16777216", "--repetitions", "1", "--turns", "1", "--out", str(tmp_path)]
    words += ["--set", f"transfer.timeout_s={PATIENCE_S}"]
    assert main([*words, "--bytes", str(32 << 20)]) == 0
    out = capsys.readouterr().out
    for way in ("memcpy", "cma", "socket", "inproc", "shm", "tcp"):
        assert f"| {way} |" in out
    assert "Digest on" in out
    assert "Digest off" in out
    assert len(list(tmp_path.iterdir())) == 2
