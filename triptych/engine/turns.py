"""How many steps a language engine made, and who was ready for the latest ones and got nothing.

What policies need to let nobody wait for ever. Knows pieces of work by their jobs; decides nothing.
"""

from collections.abc import Mapping, Sequence

from triptych.core.ids import JobId
from triptych.engine.policies import Work
from triptych.engine.sequence import Sequence as Known


class Turns:
    """Counts over the steps of one engine."""

    def __init__(self, known: Mapping[JobId, Known]) -> None:
        """``known``: the engine's sequences; their ``num_passed_over`` is kept here."""
        self._known = known
        self._left: set[JobId] = set()
        """Ready and not in the latest step."""
        self.number = 0
        """Steps so far."""
        self.passed_over = 0
        """Steps in a row in which prefill was ready and none of it was taken."""

    def took(self, ready: Sequence[Work], chosen: Sequence[Work]) -> None:
        """A step of ``chosen`` begins, of all that was ready for it."""
        self.number += 1
        left: set[JobId] = set()
        if len(chosen) < len(ready):
            left = {work.job for work in ready}.difference(work.job for work in chosen)
        for job in self._left - left:
            if job in self._known:
                self._known[job].num_passed_over = 0
        for job in left:
            self._known[job].num_passed_over += 1
        self._left = left
        is_passed_over = (
            bool(left)
            and any(not work.is_decode for work in ready)
            and all(work.is_decode for work in chosen)
        )
        self.passed_over = self.passed_over + 1 if is_passed_over else 0
