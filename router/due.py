"""When a choice's next token is due, and how much of its way lies behind each of its jobs.

What jobs say of their urgency (``JobHeader``). Knows the promise, the route and measured speeds;
decides nothing.
"""

from collections.abc import Mapping

from scheduler.latency import Latencies
from triptych.core.ids import InstanceId
from triptych.core.layout import Layout
from triptych.core.lifecycle import Stage
from triptych.core.request import Item, Prompt, Request
from triptych.core.view import Description, Route


class Due:
    """By the SLO: the first token in time after the arrival, the others a gap apart, counted from
    when the first came."""

    def __init__(self, request: Request, arrival_s: float | None) -> None:
        self._slo = slo = request.slo
        self._priority = request.priority
        self._first_s: float | None = None
        self._num_tokens = 0
        self.next_s: float | None = None
        """When the next token is due; None: no bound."""
        if arrival_s is not None and slo.ttft_s is not None:
            self.next_s = arrival_s + slo.ttft_s

    def drew(self, now_s: float, count: int) -> None:
        """So many tokens came at once."""
        self._num_tokens += count
        if self._first_s is None:
            self._first_s = now_s
        tpot_s = self._slo.tpot_s
        self.next_s = None if tpot_s is None else self._first_s + self._num_tokens * tpot_s

    def left(self, now_s: float) -> tuple[float | None, float | None, int]:
        """``slo_ttft_s``, ``slo_tpot_s`` and ``priority`` of a job that is sent now."""
        left_s = None if self.next_s is None else self.next_s - now_s
        return left_s, self._slo.tpot_s, self._priority


class Way:
    """``later_s`` of the jobs of one attempt: predicted seconds behind each of them."""

    def __init__(
        self,
        prompt: Prompt,
        route: Route,
        about: Mapping[InstanceId, Description],
        latencies: Latencies,
    ) -> None:
        self._prompt = prompt
        self._route = route
        self._about = about
        self._latencies = latencies

    def behind_picture(self, encoder: InstanceId, item: Item) -> float:
        """Its embedding's transfer, and prefill from the picture on; the text before it is
        computed meanwhile."""
        prefill = self._route.prefill
        num_bytes = _bytes(self._about[encoder].embedding, item.num_tokens)
        moved_s = self._latencies.transfer_s(encoder, prefill, num_bytes)
        num_tokens = len(self._prompt) - item.offset
        return moved_s + num_tokens * self._latencies.token_s(Stage.PREFILL, prefill)

    def behind_prefill(self) -> float:
        """The KV's transfer and the first decode step; none where one instance does both."""
        prefill, decode = self._route.prefill, self._route.decode
        if prefill == decode:
            return 0.0
        num_bytes = _bytes(self._about[prefill].kv, len(self._prompt))
        moved_s = self._latencies.transfer_s(prefill, decode, num_bytes)
        return moved_s + self._latencies.token_s(Stage.DECODE, decode)


def _bytes(layout: Layout | None, num_tokens: int) -> float:
    return 0.0 if layout is None else num_tokens / layout.block_size * layout.block_bytes
