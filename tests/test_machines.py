"""The state machines together do what was promised."""

import re
from pathlib import Path

from tests.machines import SHARES, Choices

HERE = Path(__file__).parent


def test_every_share_is_done_by_a_test_and_they_are_many():
    used = []
    for path in HERE.rglob("test_*.py"):
        used += re.findall(r"^    run\(\"(\w+)\"", path.read_text(), re.MULTILINE)
    assert sorted(used) == sorted(SHARES)
    assert sum(SHARES.values()) >= 100_000


def test_choices_go_on_behind_their_end():
    choices = Choices(b"\x05\x01")
    assert (choices.below(3), choices.of("ab"), choices.is_over) == (2, "b", True)
    assert (choices.below(9), choices.of("ab")) == (0, "a")
