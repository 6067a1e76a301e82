"""Any interleaving on a tree, beside a dict of paths that is searched from end to end."""

from typing import NamedTuple

import pytest

from tests.machines import Counted, run
from triptych.cache.eviction import ORDERS
from triptych.cache.radix import Link, RadixTree
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId, ContentHash

KEYS = range(2)
SALTS = (b"one", b"two")
DEPTH = 5
MOST_HELD = 4
COSTS = (0.5, 1.0, 3.0)


def link(key: int, text: int = 0) -> Link:
    return Link(ContentHash(bytes([key])), bytes((key, text)))


class Leaf(NamedTuple):
    """A cached block as the model knows it."""

    block: int
    cost: float
    text: int
    num_uses: int = 0
    rank: float = 0.0
    tick: int = 0


class RadixMachine(Counted):
    """Paths are tuples: the salt, then a key for each block."""

    operations = ("begin", "begin", "extend", "extend", "extend", "end", "end", "evict", "misuse")
    order = "lru"

    def __init__(self):
        super().__init__()
        self.tree = RadixTree("model", ORDERS[self.order])
        self.leaves: dict[tuple, Leaf] = {}
        self.held: list[tuple] = []
        """(node, path) of each lock."""
        self.floor = 0.0
        self.tick = 0
        self.serial = 0

    def locks(self, path):
        return sum(held[: len(path)] == path for _, held in self.held)

    def idle_leaves(self):
        inner = {path[:-1] for path in self.leaves}
        return [path for path in self.leaves if path not in inner and not self.locks(path)]

    def begin(self, choices):
        """Lock the deepest block there is on a random path."""
        if len(self.held) == MOST_HELD:
            return
        path = (choices.of(SALTS),)
        root = node = self.tree.root(path[0])
        self.tree.lock(root)
        for key in [choices.of(KEYS) for _ in range(choices.below(DEPTH))]:
            text = choices.below(8) == 7
            leaf = self.leaves.get((*path, key))
            child = self.tree.find(node, link(key, text))
            assert (child is not None) == (leaf is not None and leaf.text == text)
            if child is None:
                break
            node, path = child, (*path, key)
            assert node.block == leaf.block
        self.tree.lock(node)
        self.tree.unlock(root)
        self.held.append((node, path))

    def extend(self, choices):
        if self.held:
            place = choices.below(len(self.held))
            for _ in range(1 + choices.below(3)):
                self.extend_one(choices, place)

    def extend_one(self, choices, place):
        node, path = self.held[place]
        if len(path) > DEPTH:
            return
        key, text = choices.of(KEYS), int(choices.below(8) == 7)
        longer, cost = (*path, key), choices.of(COSTS)
        self.serial += 1
        child = self.tree.extend(node, link(key, text), BlockId(self.serial), cost)
        leaf = self.leaves.get(longer)
        if leaf is not None and leaf.text != text:
            assert child is None, "another text with that key"
            return
        if leaf is None:
            leaf = self.leaves[longer] = Leaf(self.serial, cost, text)
        assert child.block == leaf.block
        self.held[place] = (child, longer)

    def end(self, choices):
        if not self.held:
            return
        node, path = self.held.pop(choices.below(len(self.held)))
        ends = range(len(path), 1, -1)
        is_new = any(not self.leaves[path[:end]].num_uses for end in ends)
        is_used = is_new or choices.below(4) > 0  # who makes a block uses it
        self.tree.unlock(node, is_used=is_used)
        for end in ends:
            if is_used:
                self.use(path[:end])

    def use(self, path):
        leaf = self.leaves[path]
        self.tick += 1
        uses = leaf.num_uses + 1
        rank = {
            "lru": 0.0,
            "lfu": self.floor + uses,
            "cost": self.floor + uses * leaf.cost,
        }[self.order]
        self.leaves[path] = leaf._replace(num_uses=uses, rank=rank, tick=self.tick)

    def evict(self, choices):
        for _ in range(1 + choices.below(3)):
            idle = self.idle_leaves()
            node = self.tree.evict()
            if not idle:
                assert node is None
                return
            victim = min(idle, key=lambda path: (self.leaves[path].rank, self.leaves[path].tick))
            leaf = self.leaves.pop(victim)
            assert node.block == leaf.block
            self.floor = max(self.floor, leaf.rank)

    def misuse(self, choices):
        """What nobody locks cannot be unlocked, and that changes nothing."""
        idle = [node for node in self.tree.nodes() if not node.locks]
        if idle:
            with pytest.raises(InvariantBroken):
                self.tree.unlock(choices.of(sorted(idle, key=lambda node: node.block)))

    def agree(self):
        self.tree.check()
        assert {node.block for node in self.tree.nodes()} == {
            leaf.block for leaf in self.leaves.values()
        }
        assert self.tree.num_blocks == len(self.leaves)
        unlocked = sum(not self.locks(path) for path in self.leaves)
        assert self.tree.num_evictable == unlocked

    def teardown(self):
        for node, _ in self.held:
            self.tree.unlock(node)
        while self.tree.evict() is not None:
            pass
        self.tree.check()
        assert self.tree.num_blocks == self.tree.num_evictable == 0
        assert not self.tree._roots


class LfuMachine(RadixMachine):
    order = "lfu"


class CostMachine(RadixMachine):
    order = "cost"


def test_radix_tree_against_a_dict_of_paths():
    run("radix", RadixMachine, LfuMachine, CostMachine, examples=30)
