"""Layouts that hold the same numbers differently, and stores read as plain tokens."""

import os

import msgspec
import numpy as np

from kvtransfer.staging import Slots
from tests.kvtransfer.stores import Store
from triptych.codec.dtypes import STORAGE, convert, widen
from triptych.codec.grid import blocks_of
from triptych.core.layout import Layout


def kv(size=4, *, shards=1, dtype="float32", layers=3, heads=2, dim=8):
    shape = (layers, 2, size, heads // shards, dim)
    return Layout("kv", "m", dtype, shape, size, shards)


def rows(size=4, *, dtype="float32", width=256):
    return Layout("embedding", "m", dtype, (size, width), size)


class Numbers(Store):
    """A store of numbers, drawn from a seed; ``is_sealed`` as those of executors are."""

    def __init__(self, num_blocks, of, seed, *, is_sealed=False, plain=False):
        super().__init__(num_blocks, of, plain=plain)
        if is_sealed:
            os.close(self.fd)
            self.view.release()
            sealed = Slots(of.block_bytes, num_blocks)
            self.fd, self._map = sealed.fd, sealed.view
            self.view = sealed.view
        drawn = np.random.default_rng(seed)
        array = blocks_of(self.view, of)
        if of.dtype == "uint8":
            array[...] = drawn.integers(0, 256, array.shape)
        else:
            convert(drawn.standard_normal(array.shape).astype("f4"), "float32", array, of.dtype)

    def tokens(self, blocks, num_tokens):
        """(tokens, layers, planes, heads, dim) as stored, of the sequence in ``blocks``."""
        array = blocks_of(self.view, self.layout)[list(blocks)]
        count, shards, layers, planes, size, heads, dim = array.shape
        by_token = array.transpose(0, 4, 2, 3, 1, 5, 6)
        return by_token.reshape(count * size, layers, planes, shards * heads, dim)[:num_tokens]


def as_type(array, dtype, target):
    """``array`` of ``dtype`` rounded to ``target``, as stored."""
    found = np.zeros(array.shape, STORAGE[target])
    convert(array, dtype, found, target)
    return found


def number(array, dtype):
    return widen(array, dtype).astype(np.float64)


def replaced(config, **changes):
    return msgspec.structs.replace(config, **changes)
