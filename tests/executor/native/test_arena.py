"""Memory for weights."""

import random
import re
import sys
from pathlib import Path

import pytest
import torch

from triptych.executor.native.arena import CHUNK, LINE, PAGE, Arena

SIZES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_what_is_given_is_nobody_elses():
    arena, source, given = Arena(), random.Random(0), []
    shapes = [(1,), (3, 5, 16), (CHUNK // 4,), (CHUNK // 4 + 1,), (0, 4), (7, 16)]
    shapes += [(source.randint(1, 400), source.randint(1, 400)) for _ in range(60)]
    for number, shape in enumerate(shapes):
        given.append(arena.take(*shape))
        assert given[-1].shape == shape
        assert given[-1].is_contiguous()
        assert not given[-1].any()
        given[-1].fill_(number)
    for number, each in enumerate(given):
        assert (each == number).all(), "somebody wrote into it"
        assert each.data_ptr() % LINE == 0


def test_it_outlives_who_gave_it():
    kept = Arena().take(1000, 16)
    kept.fill_(1.0)
    for _ in range(4):
        Arena().take(CHUNK // 4).fill_(2.0)
    assert kept.sum() == 16_000


@pytest.mark.skipif(
    not SIZES.exists() or "[never]" in SIZES.read_text(), reason="the kernel has no huge pages"
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_system_is_asked_for_huge_pages():
    mine = Arena().take(PAGE // 4)
    mine.copy_(torch.ones(PAGE // 4))
    flags = ""
    is_here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if region := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            low, high = (int(each, 16) for each in region.groups())
            is_here = low <= mine.data_ptr() < high
        elif is_here and line.startswith("VmFlags:"):
            flags = line
    assert "hg" in flags.split(), "the mapping is not marked"
    assert mine.data_ptr() % PAGE == 0
