"""Identity: SHA-256 over length-prefixed fields, and the cache keys made of it.

Knows which fields make two things the same. Does not know what is cached where.
"""

import hashlib
import hmac
import struct
from collections.abc import Iterable, Sequence

from triptych.core.ids import ContentHash, TenantId

SCHEMA = b"triptych-1"
"""Part of every key: a change of meaning of any key changes this."""


def digest(domain: str, *fields: bytes) -> ContentHash:
    """SHA-256 of ``domain`` and ``fields``, each with its length in front, so no two inputs collide
    by concatenation."""
    parts = [SCHEMA]
    for field in (domain.encode(), *fields):
        parts += (len(field).to_bytes(8, "little"), field)
    return ContentHash(hashlib.sha256(b"".join(parts)).digest())


def tenant_salt(cluster_secret: bytes, tenant: TenantId) -> bytes:
    """Salt of a tenant's cache keys, from the authenticated tenant, never from a request's body."""
    return hmac.new(cluster_secret, tenant.encode(), "sha256").digest()


def item_key(
    salt: bytes, processor: str, width: int, height: int, options: str, content: bytes
) -> ContentHash:
    """Key of a picture: its encoded bytes, its size and everything that decides its pixels."""
    shape = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return digest("item", salt, processor.encode(), options.encode(), shape, content)


def block_key(
    parent: bytes,
    tokens: Sequence[int],
    items: Iterable[tuple[int, int, bytes]] = (),
) -> ContentHash:
    """Key of a full KV block: its parent's key, its token ids and, for every visual item that
    overlaps the block, ``(offset in the item, offset in the block, item key)``."""
    text = struct.pack(f"<{len(tokens)}I", *tokens)
    parts = [_BLOCK, _length(len(parent)), parent, _length(len(text)), text]
    for in_item, in_block, key in items:
        parts.append(_sized(in_item.to_bytes(4, "little") + in_block.to_bytes(4, "little") + key))
    return ContentHash(hashlib.sha256(b"".join(parts)).digest())


def block_keys(
    parent: bytes, tokens: bytes, size: int, items: Sequence[tuple[int, int, bytes]]
) -> list[bytes]:
    """Keys of all full blocks of a sequence at once, equal to a chain of ``block_key``.

    Args:
        parent: ``root_key`` of the sequence.
        tokens: token ids, 4 bytes each, little endian.
        size: tokens in a block.
        items: ``(offset, end, key)`` of every visual item, in order.
    """
    head = _BLOCK + _length(len(parent))
    found, width, first = [], 4 * size, 0
    middle = _length(width)
    for start in range(0, len(tokens) // width * size, size):
        end = start + size
        while first < len(items) and items[first][1] <= start:
            first += 1
        text = tokens[4 * start : 4 * end]
        marks = b""
        for offset, _, key in items[first:]:
            if offset >= end:
                break
            at = max(start - offset, 0).to_bytes(4, "little")
            marks += _sized(at + max(offset - start, 0).to_bytes(4, "little") + key)
        parent = hashlib.sha256(b"".join((head, parent, middle, text, marks))).digest()
        found.append(parent)
    return found


def _length(count: int) -> bytes:
    return count.to_bytes(8, "little")


def _sized(field: bytes) -> bytes:
    return _length(len(field)) + field


def root_key(salt: bytes, model: str) -> ContentHash:
    """Parent of the first block of every sequence of one tenant on one model."""
    return digest("root", salt, model.encode())


_BLOCK = SCHEMA + _sized(b"block")
"""How the fields of every block's key begin, as ``digest`` writes them."""
