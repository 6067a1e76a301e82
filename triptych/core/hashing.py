"""Identity: SHA-256 over length-prefixed fields, and the cache keys made of it.

Knows which fields make two things the same. Does not know what is cached where.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable, Sequence

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


def sha256(text: bytes) -> ContentHash:
    """SHA-256."""
    return ContentHash(hashlib.sha256(text).digest())


def blocks(
    parent: bytes,
    tokens: Sequence[int],
    size: int,
    items: Sequence[tuple[int, int, bytes]] = (),
    hashed: Callable[[bytes], ContentHash] = sha256,
) -> list[tuple[ContentHash, bytes]]:
    """Key and text of each full KV block of a sequence. A block's text is its token ids and, for
    every visual item that overlaps it, ``(offset in the item, offset in the block, item key)``; its
    key is the hash of its parent's key and its text.

    Args:
        parent: key of the block before the first one, or ``root_key``.
        tokens: token ids from the first block on.
        size: tokens in a block.
        items: ``(offset, end, key)`` of every item that overlaps ``tokens``, in order. An item that
            begins before them has an offset below 0.
        hashed: only tests pass another.
    """
    width = 4 * size
    whole = struct.pack(f"<{len(tokens)}I", *tokens)
    middle, first = _length(width), 0
    found: list[tuple[ContentHash, bytes]] = []
    for start in range(0, len(tokens) // size * size, size):
        end = start + size
        text = whole[4 * start : 4 * end]
        while first < len(items) and items[first][1] <= start:
            first += 1
        for index in range(first, len(items)):
            offset, _, key = items[index]
            if offset >= end:
                break
            text += _MARK.pack(8 + len(key), max(start - offset, 0), max(offset - start, 0)) + key
        key = hashed(b"".join((_BLOCK, _length(len(parent)), parent, middle, text)))
        found.append((key, text))
        parent = key
    return found


def _length(count: int) -> bytes:
    return count.to_bytes(8, "little")


def _sized(field: bytes) -> bytes:
    return _length(len(field)) + field


def root_key(salt: bytes, model: str) -> ContentHash:
    """Parent of the first block of every sequence of one tenant on one model."""
    return digest("root", salt, model.encode())


_MARK = struct.Struct("<QII")
_BLOCK = SCHEMA + _sized(b"block")
"""How the fields of every block's key begin, as ``digest`` writes them."""
