"""The disk tier's file: a table of records, then slots, all there from the start.

    page 0            who may read it: magic, version, sizes, layout, a proof of the secret
    records           128 bytes a slot, memory-mapped: key, part, digest, and a mark written last
    slots             payload, by direct I/O where the file system takes it

A slot is rewritten in the order: mark cleared, payload, record, mark. So a process that dies at any
point leaves each entry whole or absent; what a power failure mixes up is found out by the digest, a
MAC over record and payload under a key derived from the cluster's secret. Knows no index and no
eviction: one thread writes, any thread reads what is not being rewritten.
"""

import fcntl
import hmac
import logging
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from triptych.core.errors import ConfigError
from triptych.core.ids import ContentHash
from triptych.offload.host import PAGE, aligned, pages

log = logging.getLogger(__name__)

VERSION = 1
_MAGIC = b"TRIPTIER"
_HEAD = struct.Struct("<8sIQQ16s32s")
"""Magic, version, bytes of a slot, slots, the file's own number, digest of the layout."""
_RECORD = struct.Struct("<12sQII32s")
"""Nonce, number of the write, part, parts, key. The digest and the mark follow."""
_RECORD_BYTES = 128
_DIGEST_AT = _RECORD.size
_MARK_AT = _RECORD_BYTES - 8
_MARK, _NO_MARK = b"COMPLETE", bytes(8)
_DIGEST_BYTES = 16

_Call = Callable[[int, list[memoryview], int], int]
"""``os.preadv`` or ``os.pwritev``."""


class Shape(NamedTuple):
    """What a file must be made for, to be of use: any difference empties it."""

    layout: bytes
    """32 bytes that stand for the model, the block layout and the packing."""
    slot_bytes: int
    num_slots: int

    @property
    def table_bytes(self) -> int:
        """Everything before the first slot."""
        return PAGE + aligned(self.num_slots * _RECORD_BYTES)

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.table_bytes + self.num_slots * self.slot_bytes

    @classmethod
    def within(cls, budget_bytes: int, layout: bytes, slot_bytes: int) -> "Shape":
        """The largest file of at most ``budget_bytes``."""
        slots = max(0, (budget_bytes - 2 * PAGE) // (slot_bytes + _RECORD_BYTES))
        return cls(layout, slot_bytes, slots)


class DiskFile:
    """One open file. ``found`` is what lay in it: the slots of every whole entry by key, the one
    written first first.

    Raises ConfigError that names ``cache.disk_path`` or ``cache.disk_bytes`` where there is no such
    room, or where another instance has the file open.
    """

    def __init__(
        self, path: Path, shape: Shape, secret: bytes, *, is_direct: bool | None = None
    ) -> None:
        self.shape = shape
        self._fds: list[int] = []
        try:
            table_fd = self._open(path, os.O_CREAT)
            fcntl.flock(table_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_known = self._is_ours(table_fd, secret)
            if not is_known:
                self._make(table_fd, secret)
            head = os.pread(table_fd, _HEAD.size, 0)
            self._key = hmac.digest(secret, b"key of a tier" + head, "sha256")[:16]
            self._table = memoryview(mmap.mmap(table_fd, shape.table_bytes))[PAGE:]
            self._fd = self._payload(path, table_fd, is_direct)
        except BlockingIOError as error:
            self.close()
            raise ConfigError(f"cache.disk_path: {path.name} is in use") from error
        except OSError as error:
            self.close()
            raise ConfigError(f"cache.disk_path, cache.disk_bytes: {error.strerror}") from error
        self.is_direct = self._fd != table_fd
        self.found, self._num_writes = self._scan()
        log.info(
            "disk tier %s: %d slots, %d entries found, %s",
            path.name,
            shape.num_slots,
            len(self.found),
            "direct" if self.is_direct else "buffered",
        )

    def write(self, key: ContentHash, slots: Sequence[int], parts: Sequence[memoryview]) -> None:
        """Write an entry, one part a slot; page-aligned ``slot_bytes`` each. Raises OSError, and
        the entry is absent."""
        self._num_writes += 1
        for slot in slots:
            self._record(slot)[_MARK_AT:] = _NO_MARK
        for number, (slot, part) in enumerate(zip(slots, parts, strict=True)):
            record = self._record(slot)
            head = _RECORD.pack(os.urandom(12), self._num_writes, number, len(slots), key)
            self._transfer(os.pwritev, slot, part)
            record[:_DIGEST_AT] = head
            record[_DIGEST_AT : _DIGEST_AT + _DIGEST_BYTES] = self._digest(head, part)
            record[_MARK_AT:] = _MARK

    def read(self, key: ContentHash, slots: Sequence[int], parts: Sequence[memoryview]) -> bool:
        """Read an entry into page-aligned ``parts``. Whether it is all there, bit by bit; what it
        read must not be used otherwise."""
        return all(
            self._read_one((key, number, len(slots)), slot, part)
            for number, (slot, part) in enumerate(zip(slots, parts, strict=True))
        )

    def close(self) -> None:
        """Close the file; what is complete stays. Idempotent."""
        self._table = memoryview(b"")
        while self._fds:
            os.close(self._fds.pop())

    def _read_one(self, expected: tuple[bytes, int, int], slot: int, part: memoryview) -> bool:
        record = bytes(self._record(slot))
        _, _, number, count, key = _RECORD.unpack(record[:_DIGEST_AT])
        if record[_MARK_AT:] != _MARK or (key, number, count) != expected:
            return False
        try:
            self._transfer(os.preadv, slot, part)
        except OSError as error:
            log.warning("the disk tier cannot be read: %s", error.strerror)
            return False
        digest = self._digest(record[:_DIGEST_AT], part)
        return hmac.compare_digest(digest, record[_DIGEST_AT : _DIGEST_AT + _DIGEST_BYTES])

    def _record(self, slot: int) -> memoryview:
        return self._table[slot * _RECORD_BYTES : (slot + 1) * _RECORD_BYTES]

    def _transfer(self, call: _Call, slot: int, part: memoryview) -> None:
        at = self.shape.table_bytes + slot * self.shape.slot_bytes
        if call(self._fd, [part], at) != self.shape.slot_bytes:
            raise OSError(0, "a slot was transferred in part")
        if not self.is_direct:  # the host tier is the cache, not the kernel
            os.posix_fadvise(self._fd, at, self.shape.slot_bytes, os.POSIX_FADV_DONTNEED)

    def _digest(self, head: bytes, part: memoryview) -> bytes:
        """GMAC (NIST SP 800-38D) of record and payload; the nonce is random and in the record."""
        mode = modes.GCM(head[:12])
        state = Cipher(algorithms.AES(self._key), mode).encryptor()
        state.authenticate_additional_data(head)
        state.authenticate_additional_data(part)
        state.finalize()
        return state.tag

    def _scan(self) -> tuple[dict[ContentHash, tuple[int, ...]], int]:
        """Whole entries by key, and the largest number of a write. Of a key that was written
        twice, the later one."""
        writes: dict[int, dict[int, int]] = {}
        about: dict[int, tuple[bytes, int]] = {}
        for slot in range(self.shape.num_slots):
            record = self._record(slot)
            if record[_MARK_AT:] == _MARK:
                _, write, part, count, key = _RECORD.unpack(record[:_DIGEST_AT])
                writes.setdefault(write, {})[part] = slot
                about[write] = (key, count)
        found: dict[ContentHash, tuple[int, ...]] = {}
        for write in sorted(writes):
            key, count = about[write]
            parts = writes[write]
            if len(parts) == count and sorted(parts) == list(range(count)):
                found.pop(ContentHash(key), None)
                slots = tuple(parts[part] for part in range(count))
                found[ContentHash(key)] = slots
        return found, max(writes, default=0)

    def _open(self, path: Path, flags: int) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        self._fds.append(fd)
        return fd

    def _payload(self, path: Path, table_fd: int, is_direct: bool | None) -> int:
        """A descriptor for direct I/O, tried out; where that does not work, the buffered one."""
        if is_direct is False or not hasattr(os, "O_DIRECT"):
            return table_fd
        try:
            fd = self._open(path, os.O_DIRECT)
            os.preadv(fd, [pages(PAGE)], self.shape.table_bytes)
        except OSError as error:
            log.info("no direct I/O for the disk tier: %s", error.strerror)
            return table_fd
        return fd

    def _is_ours(self, fd: int, secret: bytes) -> bool:
        head = os.pread(fd, _HEAD.size + 32, 0)
        if len(head) < _HEAD.size + 32 or os.fstat(fd).st_size != self.shape.file_bytes:
            return False
        magic, version, slot_bytes, num_slots, _, layout = _HEAD.unpack(head[: _HEAD.size])
        return (
            (magic, version) == (_MAGIC, VERSION)
            and Shape(layout, slot_bytes, num_slots) == self.shape
            and hmac.compare_digest(_proof(secret, head[: _HEAD.size]), head[_HEAD.size :])
        )

    def _make(self, fd: int, secret: bytes) -> None:
        """An empty file, its first page last."""
        shape = self.shape
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, shape.file_bytes)
        size = (shape.slot_bytes, shape.num_slots)
        head = _HEAD.pack(_MAGIC, VERSION, *size, os.urandom(16), shape.layout)
        os.pwrite(fd, head + _proof(secret, head), 0)


def _proof(secret: bytes, head: bytes) -> bytes:
    return hmac.digest(secret, b"head of a tier" + head, "sha256")
