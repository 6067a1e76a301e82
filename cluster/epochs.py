"""Fences off late attempts: who has seen a later attempt of a request refuses an earlier one."""

from collections import OrderedDict

from triptych.core.errors import Cancelled
from triptych.core.handoff import JobHeader

MAX_REQUESTS = 8192
"""Requests remembered; far more than are ever in flight at one router."""


class Epochs:
    """The latest attempt seen of each recent request and choice."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, int] = OrderedDict()

    def check(self, header: JobHeader) -> None:
        """Remember the attempt of a job; raise Cancelled if a later one was seen before."""
        choice = header.id.rsplit("/", 2)[0]
        latest = self._latest.get(choice, 0)
        if header.epoch < latest:
            raise Cancelled(f"attempt {header.epoch} comes after attempt {latest}")
        self._latest[choice] = header.epoch
        self._latest.move_to_end(choice)
        if len(self._latest) > MAX_REQUESTS:
            self._latest.popitem(last=False)
