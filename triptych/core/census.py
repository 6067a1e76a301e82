"""Who owns what: the list of every counted resource of an instance and its owner.

An instance at rest holds nothing but free and cached blocks: ``held`` is empty. Tests compare.
"""

import msgspec


class Holding(msgspec.Struct, frozen=True, order=True):
    """``count`` pieces of a kind (``kv_block``, ``embedding_block``, ``segment``, ``lease``,
    ``job``, ``fetch``, ``task``, ``session`` ...) held by one owner."""

    kind: str
    owner: str
    count: int


class Census(msgspec.Struct, frozen=True):
    """All holdings of one instance."""

    instance: str
    held: tuple[Holding, ...]
    totals: dict[str, int]
    """Sizes of the pools by name, and what of them is ``free`` or merely ``cached``, e.g.
    ``kv_block.total``, ``kv_block.free``, ``kv_block.cached``."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held by anybody, and no block is unaccounted for."""
        pools = {name.split(".")[0] for name in self.totals}
        return not self.held and all(
            self.totals.get(f"{pool}.total", 0)
            == self.totals.get(f"{pool}.free", 0) + self.totals.get(f"{pool}.cached", 0)
            for pool in pools
        )
