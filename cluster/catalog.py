"""The directory's index: which instance holds which keys, by what the instances told.

Pure and in memory; every router has one. What it says is a hint. Knows keys and tiers; does not
know how batches travel, nor what anybody decides by them.
"""

from collections.abc import Sequence

from triptych.core.catalog import KEY_BYTES, CacheBatch, Tier
from triptych.core.ids import ContentHash, InstanceId
from triptych.core.view import Held

_BITS = {tier: 1 << index for index, tier in enumerate(Tier)}
_DEVICE = _BITS[Tier.DEVICE]
_NEAR = _DEVICE | _BITS[Tier.HOST]


class _Shelf:
    """Keys of one instance with the tiers they lie on, as bits."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.keys: dict[str, dict[bytes, int]] = {"kv": {}, "item": {}}

    def take(self, batch: CacheBatch) -> None:
        self.sequence = batch.sequence
        for change in batch.changes:
            keys, bit = self.keys[change.kind], _BITS[change.tier]
            for key in change.keys:
                if change.is_stored:
                    keys[key] = keys.get(key, 0) | bit
                elif rest := keys.get(key, 0) & ~bit:
                    keys[key] = rest
                else:
                    keys.pop(key, None)


class Catalog:
    """Keys of all instances."""

    def __init__(self) -> None:
        self._shelves: dict[InstanceId, _Shelf] = {}

    def apply(self, instance: InstanceId, batch: CacheBatch) -> bool:
        """Take in what an instance told. False if something before it was lost: nothing is known of
        the instance then until its next snapshot, which is to be asked for."""
        shelf = self._shelves.get(instance)
        if batch.is_snapshot:
            shelf = self._shelves[instance] = _Shelf(batch.sequence)
        elif shelf is None:
            return False
        elif batch.sequence <= shelf.sequence:
            return True  # a snapshot had it already
        elif batch.sequence > shelf.sequence + 1:
            self.forget(instance)
            return False
        shelf.take(batch)
        return True

    def forget(self, instance: InstanceId) -> None:
        """The instance is gone, or what it told cannot be relied on."""
        self._shelves.pop(instance, None)

    def clear(self) -> None:
        """Forget all."""
        self._shelves.clear()

    def sequence(self, instance: InstanceId) -> int | None:
        """Number of the last batch taken in; None if nothing is known of the instance."""
        shelf = self._shelves.get(instance)
        return None if shelf is None else shelf.sequence

    def holders(self, item: bytes) -> tuple[InstanceId, ...]:
        """Instances that hold the embedding of an item, by its short key."""
        return tuple(name for name, shelf in self._shelves.items() if item in shelf.keys["item"])

    def prefix(self, instance: InstanceId, keys: Sequence[bytes]) -> tuple[int, int, int]:
        """How many of ``keys`` (of a sequence's blocks, in order, short) from the first on lie on
        the device; on device or host; anywhere at the instance."""
        shelf = self._shelves.get(instance)
        if shelf is None:
            return 0, 0, 0
        known, device, near, number = shelf.keys["kv"], 0, 0, 0
        for key in keys:
            bits = known.get(key)
            if bits is None:
                break
            if bits & _DEVICE and device == number:
                device += 1
            if bits & _NEAR and near == number:
                near += 1
            number += 1
        return device, near, number

    def is_bare(self, instance: InstanceId, first: bytes | None, items: Sequence[bytes]) -> bool:
        """Whether ``held`` would say nothing for a prompt whose first block's key is ``first``, and
        short keys of whose pictures are ``items``: true of most instances, and soon said."""
        shelf = self._shelves.get(instance)
        if shelf is None:
            return True
        known = shelf.keys["item"]
        return first not in shelf.keys["kv"] and not (items and any(map(known.__contains__, items)))

    def held(
        self,
        instance: InstanceId,
        keys: Sequence[bytes],
        block_size: int,
        items: Sequence[ContentHash],
    ) -> Held:
        """What an instance holds of a prompt whose blocks have ``keys`` (short) and whose pictures
        are ``items``."""
        shelf = self._shelves.get(instance)
        if shelf is None:
            return Held()
        device, near, number = (count * block_size for count in self.prefix(instance, keys))
        known = shelf.keys["item"]
        there = frozenset(item for item in items if item[:KEY_BYTES] in known)
        return Held((device, near, number), there)
