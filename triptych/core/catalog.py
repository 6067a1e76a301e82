"""What instances tell of themselves beside their jobs: what is cached where, how fast a link is.

A directory built from these words is a hint: what it says may be over by the time somebody acts on
it, which costs a miss and never an answer.
"""

from enum import Enum

import msgspec

from triptych.core.ids import InstanceId

KEY_BYTES = 16
"""Leading bytes of a content key that a directory keeps: enough to tell keys apart, and whoever
holds the content compares all of it before a byte is used."""


KINDS = ("kv", "item")
"""What is cached: full blocks, and embeddings of pictures."""


class Tier(Enum):
    """Where a cached thing lies, the fastest first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class Change(msgspec.Struct, frozen=True, array_like=True):
    """Keys of one kind that came to a tier of an instance, or left it."""

    kind: str
    """One of ``KINDS``."""
    tier: Tier
    is_stored: bool
    keys: tuple[bytes, ...]
    """``KEY_BYTES`` each; blocks of a sequence in order, the parents first."""


class CacheBatch(msgspec.Struct, frozen=True):
    """What changed in the caches of one instance since its batch before."""

    sequence: int
    """Counts the batches of this incarnation from 1; a gap means that some were lost. A snapshot
    bears the number of the last batch that it contains."""
    is_snapshot: bool
    """Whether the batch says all there is, so that what was known before is void."""
    changes: tuple[Change, ...]


class LinkReport(msgspec.Struct, frozen=True):
    """How the taker of a link finds it, by what it measured on transfers that it made anyway."""

    giver: InstanceId
    transport: str
    latency_s: float
    """Of a round trip of small frames."""
    bytes_per_s: float
    """0 if it was never measured, or while the transport is avoided because it broke."""
    failovers: int
    """How often another transport had to be used in place of this one, since the start."""
