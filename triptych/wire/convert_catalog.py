"""Core values of caches and links <-> their messages in ``proto/triptych/v1/stage.proto``.

As ``wire.convert``, which uses it: ``encode_*`` never fails, ``decode_*`` raises RequestError.
"""

from triptych.core import catalog
from triptych.core.errors import RequestError
from triptych.core.ids import InstanceId
from triptych.v1 import stage_pb2 as pb

_SIZE = catalog.KEY_BYTES
_KINDS = ("kv", "item")


def encode_cache_batch(batch: catalog.CacheBatch) -> pb.CacheBatch:
    """A batch of cache changes as its message."""
    changes = [
        pb.CacheChange(
            kind=change.kind,
            tier=change.tier.value,
            is_stored=change.is_stored,
            keys=b"".join(change.keys),
        )
        for change in batch.changes
    ]
    return pb.CacheBatch(sequence=batch.sequence, is_snapshot=batch.is_snapshot, changes=changes)


def decode_cache_batch(message: pb.CacheBatch) -> catalog.CacheBatch:
    """The inverse of ``encode_cache_batch``."""
    changes = tuple(_decode_change(change) for change in message.changes)
    return catalog.CacheBatch(message.sequence, message.is_snapshot, changes)


def _decode_change(message: pb.CacheChange) -> catalog.Change:
    keys = message.keys
    if message.kind not in _KINDS or len(keys) % _SIZE:
        raise RequestError(f"keys of {_SIZE} bytes, of kv or item", field="caches")
    try:
        tier = catalog.Tier(message.tier)
    except ValueError:
        raise RequestError(f"tier {message.tier!r} is not known", field="caches") from None
    pieces = tuple(keys[start : start + _SIZE] for start in range(0, len(keys), _SIZE))
    return catalog.Change(message.kind, tier, message.is_stored, pieces)


def encode_link(report: catalog.LinkReport) -> pb.LinkReport:
    """What is known of a link, as its message."""
    return pb.LinkReport(
        giver=report.giver,
        transport=report.transport,
        latency_s=report.latency_s,
        bytes_per_s=report.bytes_per_s,
        failovers=report.failovers,
    )


def decode_link(message: pb.LinkReport) -> catalog.LinkReport:
    """The inverse of ``encode_link``."""
    return catalog.LinkReport(
        giver=InstanceId(message.giver),
        transport=message.transport,
        latency_s=message.latency_s,
        bytes_per_s=message.bytes_per_s,
        failovers=message.failovers,
    )
