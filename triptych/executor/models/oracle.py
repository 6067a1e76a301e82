"""The oracle: a model without weights whose every token proves all that was read.

Token ``i`` has the chain value ``h_i = H(h_{i-1}, token or embedding row)``, ``h_{-1} = H(salt)``.
Its KV, over all layers and heads, is ``h_i``; a segment that begins at ``start`` reads
``h_{start-1}`` back from the store. Logits are a hash of the KV of all tokens, read through the
block table: a swapped, stale, truncated or lost block, or part of one, changes the tokens.
``oracle_reference`` says it without blocks.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import ConfigError, InvariantBroken
from triptych.core.layout import Layout
from triptych.core.plan import LanguagePlan, Segment
from triptych.executor.block_store import BlockStore
from triptych.executor.language import OnLayers
from triptych.inputs import oracle_words

NUM_LAYERS = 2
NUM_HEADS = 2
HEAD_DIM = 8
CHAIN_BYTES = NUM_LAYERS * 2 * NUM_HEADS * HEAD_DIM
"""A chain value is spread over layers, keys and values, and heads, in this order, whatever the
number of shards: 64 bytes, a whole BLAKE2b digest."""
MAIN_BYTES = 32
DEEP_BYTES = 16
WIDTH = MAIN_BYTES + DEEP_BYTES
"""Bytes of an embedding row: the main embedding, then two deep-stack levels of 8 bytes each."""

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


def kv_layout(*, block_size: int, model: str, num_shards: int = 1) -> Layout:
    """Layout of the oracle's KV blocks. Raises ConfigError if its heads cannot be divided."""
    if NUM_HEADS % num_shards:
        raise ConfigError(
            f"model.tensor_parallel: {num_shards} does not divide the oracle's {NUM_HEADS} KV heads"
        )
    shape = (NUM_LAYERS, 2, block_size, NUM_HEADS // num_shards, HEAD_DIM)
    return Layout("kv", model, "uint8", shape, block_size, num_shards)


class OracleLanguage:
    """Implements ``executor.language.LanguageModel``."""

    vocab_size = oracle_words.VOCAB_SIZE

    def __init__(self, memory: BlockStore, embeddings: BlockStore | None) -> None:
        layout = memory.layout
        self._size = layout.block_size
        # (blocks, layers * 2, tokens, shards, heads of a shard, HEAD_DIM): a token's last three are
        # whole parts of its chain value, whatever the number of shards.
        runs: Bytes = memory.tensor.numpy()
        shape = (-1, layout.num_shards, NUM_LAYERS * 2, *layout.shape[2:])
        self._kv: Bytes = runs.reshape(shape).transpose(0, 2, 3, 1, 4, 5)
        self._rows: Bytes | None = None
        if embeddings is not None:
            self._rows = embeddings.tensor.numpy().reshape(-1, WIDTH)
            self._row_block = embeddings.layout.block_size

    def logits(self, plan: LanguagePlan, on_layers: OnLayers | None = None) -> Tensor:
        """Write chain values; a hash of all of them for each draw. See ``LanguageModel``."""
        self._write(plan, on_layers)
        rows = [
            logits_of(self._read(segment.blocks, segment.end))
            for segment in plan.segments
            if segment.draw is not None
        ]
        shape = (len(rows), self.vocab_size)
        return torch.from_numpy(np.concatenate(rows).reshape(shape)) if rows else torch.empty(shape)

    def _write(self, plan: LanguagePlan, on_layers: OnLayers | None) -> None:
        """All chain values first, then their parts layer by layer."""
        values, blocks, offsets = [], [], []
        last: dict[tuple[int, int], bytes] = {}
        for segment in plan.segments:
            links = self._links(segment, last)
            index = np.arange(segment.start, segment.end)
            blocks.append(np.array(segment.blocks, dtype=np.int64)[index // self._size])
            offsets.append(index % self._size)
            values.append(b"".join(links))
            last[int(blocks[-1][-1]), int(offsets[-1][-1])] = links[-1]
        table, offset = np.concatenate(blocks), np.concatenate(offsets)
        parts = np.frombuffer(b"".join(values), dtype=np.uint8)
        parts = parts.reshape(len(table), NUM_LAYERS * 2, *self._kv.shape[3:])
        for layer in range(NUM_LAYERS):
            pair = slice(layer * 2, layer * 2 + 2)
            self._kv[table, pair, offset] = parts[:, pair]
            if on_layers is not None:
                on_layers(layer + 1)

    def _links(self, segment: Segment, last: dict[tuple[int, int], bytes]) -> list[bytes]:
        """The segment's chain values. ``last`` are those at the ends of this plan's segments so
        far, by place: they are not in the store yet."""
        link = first_link(segment.salt)
        if segment.start:
            before = segment.start - 1
            place = segment.blocks[before // self._size], before % self._size
            link = last.get(place) or self._kv[place[0], :, place[1]].tobytes()
        links = []
        for content in self._contents(segment):
            link = next_link(link, content)
            links.append(link)
        return links

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
        tokens: Bytes = self._kv[used].swapaxes(1, 2).reshape(-1, CHAIN_BYTES)[:end]
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
