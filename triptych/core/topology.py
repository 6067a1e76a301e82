"""Topologies in words: ``E2,P1,D4``, ``EP2,D1``, ``EPD1`` are counts of instances per role."""

import re

from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role, Stage

_LETTERS = {stage.letter: stage for stage in Stage}


def parse(text: str) -> tuple[tuple[Role, int], ...]:
    """Roles and their counts, in the order written. Every stage must be served by some role.

    Raises ConfigError that names the part that is wrong.
    """
    parts: list[tuple[Role, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([EPD]{1,3})([0-9]{1,4})\s*", part)
        if match is None or len(set(match[1])) != len(match[1]):
            raise ConfigError(f"cluster.topology: {part!r} is not like E1, PD2 or EPD1")
        role = frozenset(_LETTERS[letter] for letter in match[1])
        if int(match[2]) < 1:
            raise ConfigError(f"cluster.topology: {part!r} must count at least one instance")
        if any(role == other for other, _ in parts):
            raise ConfigError(f"cluster.topology: {part!r} repeats a role")
        parts.append((role, int(match[2])))
    missing = set(Stage) - {stage for role, _ in parts for stage in role}
    if missing:
        names = ", ".join(sorted(stage.value for stage in missing))
        raise ConfigError(f"cluster.topology: {text!r} has no instance for {names}")
    return tuple(parts)


def name(role: Role) -> str:
    """A role as written in a topology: ``E``, ``PD``, ``EPD``."""
    return "".join(stage.letter for stage in Stage if stage in role)
