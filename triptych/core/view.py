"""Frozen snapshots that policies decide on. Values in; nothing here can change anything."""

import msgspec

from triptych.core.handoff import Endpoint
from triptych.core.ids import InstanceId
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


class InstanceView(msgspec.Struct, frozen=True):
    """An instance and its load as the router counts it."""

    description: Description
    state: InstanceState
    num_jobs: dict[str, int]
    """Jobs in flight by stage name."""
    num_tokens: dict[str, int]
    """Tokens (visual ones for ``encode``) of those jobs by stage name."""


class ClusterView(msgspec.Struct, frozen=True):
    """All instances at one moment."""

    instances: tuple[InstanceView, ...]

    def serving(self, stage: Stage) -> tuple[InstanceView, ...]:
        """Ready instances whose role includes ``stage``, in a stable order."""
        return tuple(
            view
            for view in self.instances
            if view.state is InstanceState.READY and stage in view.description.role
        )


class Route(msgspec.Struct, frozen=True):
    """Where one attempt of a request goes."""

    encode: tuple[InstanceId, ...]
    """One per item."""
    prefill: InstanceId
    decode: InstanceId
    """May equal ``prefill``: then one job does both."""
