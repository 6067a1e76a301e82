"""What came of a target: values, verdicts, and what they are made of."""

import msgspec

from simulator.reproduce.target import Check, Target


class Outcome(msgspec.Struct, frozen=True):
    """Of one check."""

    value: float | None
    """None: nothing was measured."""
    note: str = ""
    """Why not."""
    is_failed: bool = False
    """It is not that something was not at hand."""

    def verdict(self, check: Check) -> str:
        """``pass``, ``miss``, ``failed``, or ``absent`` where something needed is not at hand."""
        if self.value is None:
            return "failed" if self.is_failed else "absent"
        return "pass" if check.is_within(self.value) else "miss"


class Result(msgspec.Struct, frozen=True):
    """Of one target."""

    number: int
    outcomes: tuple[Outcome, ...]
    """One a check."""
    num_requests: int
    cpu_s: float
    """Of the process that simulated."""

    def verdict(self, target: Target) -> str:
        """The worst of its checks."""
        found = {one.verdict(check) for one, check in self.checked(target)}
        return next(word for word in ("failed", "miss", "absent", "pass") if word in found)

    def checked(self, target: Target) -> list[tuple[Outcome, Check]]:
        """Outcomes beside their checks."""
        return list(zip(self.outcomes, target.checks, strict=True))

    def surprises(self, target: Target) -> list[str]:
        """Checks that fail, or miss without a reason that was written down before."""
        return [
            check.says
            for one, check in self.checked(target)
            if one.is_failed or (one.verdict(check) == "miss" and not check.miss)
        ]
