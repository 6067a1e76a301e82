"""Four hosts on one machine: exact tokens across them, and placement that leaves a slow link."""

import asyncio
import re
import sys

import pytest

from kvtransfer.transports.nixl_agent import is_installed
from tests.netns import network
from tests.netns.four_hosts import ROOT
from triptych.core.config import _CHOICES

WHY_NOT = network.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]


async def four_hosts(*words: str) -> str:
    """What the script says; it must succeed and leave no namespace."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.netns.four_hosts", *words),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    said = output.decode()
    assert process.returncode == 0, said
    assert f"tt{process.pid}-" not in network.run("ip", "netns", "list")
    return said


@pytest.mark.parametrize(
    "transport",
    ["tcp", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("nixl", "auto"))],
)
async def test_tokens_are_exact_across_hosts(transport):
    if transport == "nixl" and not is_installed():
        pytest.skip("nixl is not installed")
    said = await four_hosts("--transports", transport, "--only", "exact")
    assert "on four hosts, all tokens exact" in said


@pytest.mark.skipif(
    "prefix_aware" not in _CHOICES["router.placement"], reason="no placement knows links yet"
)
async def test_placement_moves_away_from_a_slow_link():
    said = await four_hosts("--only", "placement")
    assert re.search(r"tcp, decode-. behind 100 Mbit/s: decode-", said), said


def test_what_a_killed_run_left_is_removed():
    network.run("ip", "netns", "add", "tt999999999-left")
    with network.network(("one",)) as one:
        assert "tt999999999" not in network.run("ip", "netns", "list")
        assert one.space("one") in network.run("ip", "netns", "list")
    assert one.space("one") not in network.run("ip", "netns", "list")
