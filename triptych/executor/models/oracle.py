"""The oracle: a model without weights whose every token proves all that was read.

Token ``i`` has the chain value ``h_i = H(h_{i-1}, token or embedding row)``, ``h_{-1} = H(salt)``.
Its KV, over all layers, is ``h_i``; a segment that begins at ``start`` reads ``h_{start-1}`` back
from the store. Logits are a hash of the KV of all tokens, read through the block table: a swapped,
stale, truncated or lost block changes the tokens. ``oracle_reference`` says it without blocks.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.core.layout import Layout
from triptych.core.plan import LanguagePlan, Segment
from triptych.executor.block_store import BlockStore
from triptych.inputs import oracle_words

NUM_LAYERS = 2
HEAD_DIM = 16
CHAIN_BYTES = NUM_LAYERS * 2 * HEAD_DIM
"""A chain value is spread over keys and values of all layers: 64 bytes, a whole BLAKE2b digest."""
WIDTH = 32
"""Bytes of an embedding row."""

Bytes = NDArray[np.uint8]


def first_link(salt: bytes) -> bytes:
    """The chain value before the first token."""
    return hashlib.blake2b(salt, digest_size=CHAIN_BYTES, person=b"oracle-salt").digest()


def next_link(link: bytes, content: bytes) -> bytes:
    """The chain value of a token: 4 bytes of its id, or its embedding row."""
    return hashlib.blake2b(link + content, digest_size=CHAIN_BYTES).digest()


def token_content(token: int) -> bytes:
    """What a text token adds to the chain."""
    return token.to_bytes(4, "little")


def embedding_rows(pixels: Bytes, count: int) -> Bytes:
    """The rows (count, WIDTH) of a picture: hashes of its pixels and their own index."""
    shape = np.array(pixels.shape, dtype=np.int64).tobytes()
    picture = hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).digest()
    rows = b"".join(
        hashlib.blake2b(picture + index.to_bytes(4, "little"), digest_size=WIDTH).digest()
        for index in range(count)
    )
    return np.frombuffer(rows, dtype=np.uint8).reshape(count, WIDTH)


def logits_of(chain: bytes) -> NDArray[np.float32]:
    """float32 (vocabulary,) from the chain values of all tokens, 64 bytes each: even in [0, 8) for
    bytes and the end of sequence, far below for every other control token."""
    stream = hashlib.shake_128(hashlib.blake2b(chain).digest()).digest(4 * oracle_words.VOCAB_SIZE)
    logits = np.frombuffer(stream, dtype="<u4").astype(np.float32) * np.float32(8 / 2**32)
    logits[oracle_words.EOS + 1 :] -= 100
    return logits


def kv_layout(*, block_size: int, model: str) -> Layout:
    """Layout of the oracle's KV blocks."""
    shape = (NUM_LAYERS, 2, block_size, 1, HEAD_DIM)
    return Layout("kv", model, "uint8", shape, block_size)


class OracleLanguage:
    """Implements ``executor.language.LanguageModel``."""

    vocab_size = oracle_words.VOCAB_SIZE

    def __init__(self, memory: BlockStore, embeddings: BlockStore | None) -> None:
        self._size = memory.layout.block_size
        # Parts of a chain value by block: (blocks, layers * 2, tokens, HEAD_DIM).
        self._kv: Bytes = memory.tensor.numpy().reshape(-1, NUM_LAYERS * 2, self._size, HEAD_DIM)
        self._rows: Bytes | None = None
        if embeddings is not None:
            self._rows = embeddings.tensor.numpy().reshape(-1, WIDTH)
            self._row_block = embeddings.layout.block_size

    def logits(self, plan: LanguagePlan, on_layers: Callable[[int], None] | None = None) -> Tensor:
        """Write chain values; a hash of all of them for each draw. See ``LanguageModel``."""
        rows: list[NDArray[np.float32]] = []
        for segment in plan.segments:
            self._write(segment)
        if on_layers is not None:
            on_layers(NUM_LAYERS)
        for segment in plan.segments:
            if segment.draw is not None:
                rows.append(logits_of(self._read(segment.blocks, segment.end)))
        shape = (len(rows), self.vocab_size)
        return torch.from_numpy(np.concatenate(rows).reshape(shape)) if rows else torch.empty(shape)

    def _write(self, segment: Segment) -> None:
        size = self._size
        link = first_link(segment.salt)
        if segment.start:
            before = segment.start - 1
            link = self._kv[segment.blocks[before // size], :, before % size].tobytes()
        links = []
        for content in self._contents(segment):
            link = next_link(link, content)
            links.append(link)
        values = np.frombuffer(b"".join(links), dtype=np.uint8)
        values = values.reshape(len(links), NUM_LAYERS * 2, HEAD_DIM)
        index = np.arange(segment.start, segment.end)
        table = np.array(segment.blocks, dtype=np.int64)
        self._kv[table[index // size], :, index % size] = values

    def _contents(self, segment: Segment) -> Sequence[bytes]:
        contents = [token_content(token) for token in segment.tokens]
        for placed in segment.items:
            item = placed.item
            for position in range(max(item.offset, segment.start), min(item.end, segment.end)):
                contents[position - segment.start] = self._row(
                    placed.blocks, position - item.offset
                )
        return contents

    def _row(self, blocks: Sequence[int], index: int) -> bytes:
        if self._rows is None or len(blocks) * self._row_block <= index:
            raise InvariantBroken("an item's embedding blocks do not cover its tokens")
        row = blocks[index // self._row_block] * self._row_block + index % self._row_block
        content: bytes = self._rows[row].tobytes()
        return content

    def _read(self, blocks: Sequence[int], end: int) -> bytes:
        used = list(blocks[: -(-end // self._size)])
        tokens: Bytes = self._kv[used].transpose(0, 2, 1, 3).reshape(-1, CHAIN_BYTES)[:end]
        return tokens.tobytes()


class OracleVision:
    """Implements ``executor.vision.VisionModel``."""

    def encode(self, pictures: Sequence[tuple[Bytes, tuple[int, int, int]]]) -> Tensor:
        """Hashes of pixels. See ``VisionModel``."""
        square = oracle_words.MERGE_SIZE**2
        rows = [
            embedding_rows(pixels, grid[0] * grid[1] * grid[2] // square)
            for pixels, grid in pictures
        ]
        return torch.from_numpy(np.concatenate(rows))
