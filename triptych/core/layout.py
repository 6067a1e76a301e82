"""What one block of memory holds, so that two instances can agree before a byte is written."""

import math
from functools import cached_property

import msgspec

from triptych.core.hashing import digest

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int8": 1, "fp8": 1}
FLOATS = ("float32", "bfloat16", "float16")
"""Types of numbers that can be rounded to one another."""
CODES = ("int8", "fp8")
SCALE_BYTES = 4
"""Of the float32 scale of a token and head whose KV are codes."""


class Layout(msgspec.Struct, frozen=True, dict=True):
    """Shape and meaning of every block of one store.

    A KV block has the shape ``(num_layers, 2, block_size, num_kv_heads, head_dim)``: all layers of
    ``block_size`` tokens in one run of memory, so that a block is one message. Where the language
    model is computed by several tensor-parallel ranks, a block is ``num_shards`` such runs, one
    behind the other, each with its rank's share of the heads. An embedding block has the shape
    ``(block_size, width)``: a row holds a visual token's main embedding and, where the model has
    them, its deep-stack levels, one behind the other.

    KV whose ``dtype`` is one of ``CODES`` has a last dimension of ``head_dim + SCALE_BYTES`` bytes:
    of each layer's keys, and of its values, a block holds all codes and behind them all scales.
    """

    kind: str
    """``kv`` or ``embedding``."""
    model: str
    """Fingerprint of the model whose numbers these are."""
    dtype: str
    shape: tuple[int, ...]
    block_size: int
    """Tokens per block."""
    num_shards: int = 1
    """Tensor-parallel ranks whose runs make up a block; ``shape`` is that of one run."""

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.num_shards * math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def num_layers(self) -> int:
        """Parts of a block that are written, and may be sent, one after the other."""
        return self.shape[0] if self.kind == "kv" else 1

    @property
    def fingerprint(self) -> str:
        """Hex digest that is equal exactly when two layouts are interchangeable."""
        return digest("layout", msgspec.msgpack.encode(self)).hex()[:32]

    def can_become(self, other: "Layout") -> bool:
        """Whether blocks of this layout hold the same numbers as blocks of ``other``, though their
        size, their shards or their floating-point type may differ."""
        return self.content == other.content

    @property
    def content(self) -> tuple[object, ...]:
        """What stays the same whatever the arrangement: equal where one can become the other."""
        numbers = "float" if self.dtype in FLOATS else self.dtype
        inner = self.shape[1:]
        if self.dtype in CODES:  # of which parts cannot be told apart without knowing them
            inner = (*self.shape, self.num_shards)
        elif self.kind == "kv":
            heads, head_dim = self.shape[-2:]
            inner = (self.shape[0], heads * self.num_shards, head_dim)
        return (self.kind, self.model, numbers, inner)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)
