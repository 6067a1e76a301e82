"""Roles that never change: what every policy is compared with."""

from collections.abc import Sequence

from scheduler.roles.fleet import Fleet, Switch


class Static:
    """Every instance keeps the role it was started with."""

    def decide(self, fleet: Fleet, now_s: float) -> Sequence[Switch]:  # noqa: ARG002
        """Nothing."""
        return ()
