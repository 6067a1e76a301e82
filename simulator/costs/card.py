"""What is known of one model on one kind of instance: seconds, bytes, and where they are from.

The form of a cost file: shipped ones, and those that a profile writes. Reads and writes text;
knows no device and no table.
"""

from pathlib import Path

import msgspec

from scheduler.fitted import FitError, Fitted
from simulator.costs.distserve import DistServe
from simulator.costs.overheads import Overheads
from simulator.costs.sizes import Sizes
from triptych.core.errors import ConfigError

DIGITS = 5
"""Significant ones that a file keeps of a number."""


class Card(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``costs`` implements ``scheduler.costs.Costs``."""

    source: str
    """What was measured, by whom, at which commit, and what was assumed."""
    sizes: Sizes
    costs: Fitted | DistServe
    overheads: Overheads | None = None
    """Of the machine, where a profile measured them."""

    @property
    def errors(self) -> dict[str, FitError]:
        """Fit error by part, as it was when fitted."""
        return self.costs.errors


def to_json(value: object) -> bytes:
    """One line, numbers rounded to ``DIGITS``: small, and the same on every machine."""
    return msgspec.json.format(msgspec.json.encode(_rounded(msgspec.to_builtins(value))), indent=0)


def from_file(path: Path) -> Card:
    """The card in a file. Raises ConfigError."""
    try:
        card = msgspec.json.decode(path.read_bytes(), type=Card)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"costs: file {path}: {error}") from None
    around = card.overheads
    if around is not None and around.step_s and not (around.turn_s or around.turn_wait_s):
        raise ConfigError(
            f"costs: file {path}: overheads without turns are of an older profile: make a new one"
        )
    return card


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
