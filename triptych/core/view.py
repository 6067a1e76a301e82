"""Frozen snapshots that policies decide on. Values in; nothing here can change anything."""

from functools import cached_property

import msgspec

from triptych.core.handoff import Endpoint
from triptych.core.ids import ContentHash, InstanceId
from triptych.core.layout import Layout
from triptych.core.lifecycle import InstanceState, Stage


class Description(msgspec.Struct, frozen=True):
    """What an instance says of itself when it joins; constant for its life."""

    id: InstanceId
    role: tuple[Stage, ...]
    model: str
    """Fingerprint of the model; instances of another one are never paired."""
    transfer: Endpoint
    kv: Layout | None
    embedding: Layout | None
    num_kv_blocks: int
    num_embedding_blocks: int
    max_tokens: int
    """Longest sequence (prompt and output) that fits."""
    pid: int
    memory_bytes: dict[str, int]
    """Resident bytes by part: ``weights``, ``kv``, ``embedding``."""


class Pending(msgspec.Struct, frozen=True):
    """What a router put on an instance and has not heard the end of. Every count >= 0."""

    pictures: int = 0
    image_tokens: int = 0
    """Of those pictures."""
    prompts: int = 0
    """Without a first token yet."""
    prompt_tokens: int = 0
    """Of those prompts, without what was believed to be cached."""
    prompt_pairs: int = 0
    """Tokens of those prompts times the tokens that each attends to."""
    decodes: int = 0
    """Sequences that draw, or will as soon as their KV is here."""
    context_tokens: int = 0
    """KV of those sequences."""
    output_tokens: int = 0
    """Most that those sequences may still draw."""


class InstanceView(msgspec.Struct, frozen=True):
    """An instance and its load as the router counts it."""

    description: Description
    state: InstanceState
    num_jobs: dict[str, int]
    """Jobs in flight by stage name."""
    num_tokens: dict[str, int]
    """Tokens (visual ones for ``encode``) of those jobs by stage name."""
    pending: Pending = Pending()


class ClusterView(msgspec.Struct, frozen=True, dict=True):
    """All instances at one moment."""

    instances: tuple[InstanceView, ...]

    def serving(self, stage: Stage) -> tuple[InstanceView, ...]:
        """Ready instances whose role includes ``stage``, in a stable order."""
        return self._by_stage[stage]

    @cached_property
    def _by_stage(self) -> dict[Stage, tuple[InstanceView, ...]]:
        found: dict[Stage, list[InstanceView]] = {stage: [] for stage in Stage}
        for view in self.instances:
            if view.state is InstanceState.READY:
                for stage in view.description.role:
                    found[stage].append(view)
        return {stage: tuple(views) for stage, views in found.items()}


class Held(msgspec.Struct, frozen=True):
    """What an instance is believed to hold of one prompt."""

    kv_tokens: tuple[int, int, int] = (0, 0, 0)
    """Leading tokens whose KV lies on its device; on its device or host; on any tier."""
    items: frozenset[ContentHash] = frozenset()
    """Pictures whose embedding it has."""


class Coverage(msgspec.Struct, frozen=True):
    """What all instances are believed to hold of one prompt. A hint: it may be over by now."""

    held: dict[InstanceId, Held] = {}

    def of(self, instance: InstanceId) -> Held:
        """What that instance holds."""
        return self.held.get(instance, _NOTHING)


_NOTHING = Held()


class Prefix(msgspec.Struct, frozen=True):
    """Leading tokens whose KV the prefill instance fetches from another one."""

    instance: InstanceId
    num_tokens: int


class Expected(msgspec.Struct, frozen=True):
    """What a policy expects of a request, in seconds from now."""

    ttft_s: float
    """To its first token."""
    tpot_s: float
    """Mean gap between the tokens behind it."""


class Route(msgspec.Struct, frozen=True):
    """Where one attempt of a request goes."""

    encode: tuple[InstanceId | None, ...]
    """One per item; None: its KV or its embedding is cached where the prompt is prefilled."""
    prefill: InstanceId
    decode: InstanceId
    """May equal ``prefill``: then one job does both."""
    prefix: Prefix | None = None
    cached_tokens: int = 0
    """Leading tokens that are not computed at ``prefill``, as far as the policy looked."""
    expected: Expected | None = None
    """Of a policy that predicts."""

    @property
    def instances(self) -> frozenset[InstanceId]:
        """Those that must work for the request; a lender of a prefix is none of them."""
        encoders = (instance for instance in self.encode if instance is not None)
        return frozenset((*encoders, self.prefill, self.decode))
