"""What this router knows of caches and speeds, for its placement policy.

Takes in what instances tell on their sessions (or a directory elsewhere, which fills the same
catalog) and what finished jobs took. Knows keys of a prompt's blocks; decides nothing.
"""

import math
import struct

from cluster.catalog import Catalog
from scheduler.latency import Latencies
from triptych.core.catalog import KEY_BYTES
from triptych.core.event import EventBatch
from triptych.core.hashing import block_keys, root_key
from triptych.core.ids import InstanceId
from triptych.core.request import Prompt
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
            ids = self._prompt.token_ids
            tokens = struct.pack(f"<{len(ids)}I", *ids)
            items = [(item.offset, item.end, bytes(item.key)) for item in self._prompt.items]
            whole = block_keys(root_key(self._salt, model), tokens, block_size, items)
            keys = self._known[model, block_size] = [key[:KEY_BYTES] for key in whole]
        return keys


class Knowledge:
    """One router's catalog and latencies.

    ``align``: cached prefixes count only up to multiples of so many tokens (deterministic engines
    cut hits at chunks).
    """

    def __init__(self, catalog: Catalog, latencies: Latencies, align: int = 1) -> None:
        self.catalog = catalog
        self.latencies = latencies
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
        found: dict[InstanceId, Held] = {}
        for each in view.instances:
            about = each.description
            size = 1 if about.kv is None else about.kv.block_size
            blocks = [] if about.kv is None else keys.of(about.model, size)
            held = self.catalog.held(about.id, blocks, size, items)
            if held.kv_tokens[-1] or held.items:
                found[about.id] = self._aligned(held, size)
        return Coverage(found)

    def _aligned(self, held: Held, block_size: int) -> Held:
        step = math.lcm(self._align, block_size)
        device, host, disk = (tokens // step * step for tokens in held.kv_tokens)
        return Held((device, host, disk), held.items)
