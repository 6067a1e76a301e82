"""What this router knows of caches and speeds, for its placement policy.

Takes in what instances tell on their sessions (or a directory elsewhere, which fills the same
catalog) and what finished jobs took. Knows keys of a prompt's blocks; decides nothing.
"""

import math

import msgspec

from cluster.catalog import Catalog
from scheduler.forecast import Forecast, Work
from scheduler.latency import Latencies
from scheduler.placement import Ask
from triptych.core.catalog import KEY_BYTES
from triptych.core.event import EventBatch
from triptych.core.hashing import blocks, root_key
from triptych.core.ids import InstanceId
from triptych.core.request import Prompt, Request
from triptych.core.view import ClusterView, Coverage, Held


class PromptKeys:
    """Short keys of a prompt's full blocks, made once for each model and block size."""

    def __init__(self, prompt: Prompt, salt: bytes) -> None:
        self._prompt = prompt
        self._salt = salt
        self._known: dict[tuple[str, int], list[bytes]] = {}

    def of(self, model: str, block_size: int) -> list[bytes]:
        """Keys as instances of ``model`` with that block size know them."""
        keys = self._known.get((model, block_size))
        if keys is None:
            items = [(item.offset, item.end, bytes(item.key)) for item in self._prompt.items]
            root = root_key(self._salt, model)
            whole = blocks(root, self._prompt.token_ids, block_size, items)
            keys = self._known[model, block_size] = [key[:KEY_BYTES] for key, _ in whole]
        return keys


class Knowledge:
    """One router's catalog and latencies.

    ``align``: cached prefixes count only up to multiples of so many tokens (deterministic engines
    cut hits at chunks).
    """

    def __init__(
        self,
        catalog: Catalog,
        latencies: Latencies,
        align: int = 1,
        forecast: Forecast | None = None,
    ) -> None:
        self.catalog = catalog
        self.latencies = latencies
        self.forecast = Forecast(latencies) if forecast is None else forecast
        self._align = align

    def heard(self, instance: InstanceId, batch: EventBatch) -> bool:
        """Take in what came on a session. False if something before it was lost."""
        if batch.links:
            self.latencies.report(instance, batch.links)
        told = [self.catalog.apply(instance, each) for each in batch.caches]  # all of them
        return all(told)

    def lost(self, instance: InstanceId) -> None:
        """The instance is gone, and its caches with it."""
        self.catalog.forget(instance)
        self.latencies.forget(instance)

    def coverage(self, prompt: Prompt, keys: PromptKeys, view: ClusterView) -> Coverage:
        """What the instances of ``view`` are believed to hold of a prompt."""
        items = list({item.key: None for item in prompt.items})
        short = [item[:KEY_BYTES] for item in items]
        found: dict[InstanceId, Held] = {}
        for each in view.instances:
            about = each.description
            size = 1 if about.kv is None else about.kv.block_size
            blocks = [] if about.kv is None else keys.of(about.model, size)
            if self.catalog.is_bare(about.id, blocks[0] if blocks else None, short):
                continue
            held = self.catalog.held(about.id, blocks, size, items)
            if held.kv_tokens[-1] or held.items:
                found[about.id] = self._aligned(held, size)
        return Coverage(found)

    def ask(self, request: Request, prompt: Prompt, num_drawn: int, elapsed_s: float) -> Ask:
        """What is left of a request's promises when it has ``num_drawn`` tokens."""
        slo = request.slo
        if num_drawn:  # its first token has come: now every moment counts, and none too much
            slo, elapsed_s = msgspec.structs.replace(slo, ttft_s=None), 0.0
        expected, most = self._length(request, prompt)
        return Ask(slo, max(0.0, elapsed_s), max(1, expected - num_drawn), max(1, most - num_drawn))

    def work(self, request: Request, prompt: Prompt, coverage: Coverage) -> Work:
        """What a request has to have done, as far as it is known: without the longest beginning
        that some instance has, and without the pictures in it, or encoded before anywhere."""
        held = coverage.held.values()
        cached = max((each.kv_tokens[-1] for each in held), default=0)
        there = frozenset().union(*(each.items for each in held))
        lacking = {
            item.key: item
            for item in prompt.items
            if item.end > cached and item.key not in there
        }  # fmt: skip
        length = max(1, len(prompt) - cached)
        expected, most = self._length(request, prompt)
        last = max((item.offset for item in lacking.values()), default=len(prompt))
        return Work(
            pictures=tuple(item.num_tokens for item in lacking.values()),
            tokens=length,
            tail=min(length, len(prompt) - last),
            num_output=expected,
            most_output=most,
        )

    def answered(self, request: Request, prompt: Prompt, num_output: int) -> None:
        """An answer ended by itself after so many tokens."""
        self.forecast.lengths.learn(request.tenant, len(prompt), len(request.pictures), num_output)

    def _length(self, request: Request, prompt: Prompt) -> tuple[int, int]:
        """Tokens that an answer is expected to have, and for how many there has to be room."""
        return self.forecast.lengths.predict(
            request.tenant, len(prompt), len(request.pictures), request.stop.max_tokens
        )

    def _aligned(self, held: Held, block_size: int) -> Held:
        step = math.lcm(self._align, block_size)
        device, host, disk = (tokens // step * step for tokens in held.kv_tokens)
        return Held((device, host, disk), held.items)
