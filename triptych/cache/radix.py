"""The prefix tree: full blocks of sequences, shared by every sequence that begins the same way.

A radix tree whose edges are one block long (after SGLang's RadixAttention, arXiv 2312.07104,
section 3). Knows keys, texts and locks. Does not know reference counts, who computes, or what makes
a block worth keeping: that is ``eviction``'s.
"""

from collections.abc import Iterator
from typing import NamedTuple

from triptych.cache.eviction import Evictable, EvictionQueue, Order, lru
from triptych.core.errors import InvariantBroken
from triptych.core.hashing import root_key
from triptych.core.ids import BlockId, ContentHash


class Link(NamedTuple):
    """A block's key and text, as ``core.hashing.blocks`` makes them."""

    key: ContentHash
    text: bytes
    """What its KV was computed from, behind its parent: compared on every hit."""


class Node(Evictable):
    """A cached block. ``locks`` counts the sequences that stand on it or below it."""

    __slots__ = ("block", "children", "link", "locks", "parent", "salt")

    def __init__(
        self, link: Link, block: BlockId, parent: "Node | None", salt: bytes, cost: float = 1.0
    ) -> None:
        super().__init__(cost)
        self.link = link
        self.block = block
        self.parent = parent
        self.salt = salt
        self.children: dict[ContentHash, Node] = {}
        self.locks = 0


class RadixTree:
    """All cached blocks of one store. One root for each tenant salt: tenants never share (N11).

    Only leaves that nobody locks can be evicted, in the order given.
    """

    def __init__(self, model: str, order: Order = lru) -> None:
        self._model = model
        self._roots: dict[bytes, Node] = {}
        self._idle_leaves: EvictionQueue[Node] = EvictionQueue(order)
        self.num_blocks = 0
        self.num_evictable = 0
        self.version = 0
        """Changes whenever ``find`` may answer otherwise than before."""

    def root(self, salt: bytes) -> Node:
        """The root of ``salt``; lock it before anything else is called, or it may go."""
        root = self._roots.get(salt)
        if root is None:
            link = Link(root_key(salt, self._model), b"")
            root = self._roots[salt] = Node(link, BlockId(-1), None, salt)
        return root

    @staticmethod
    def find(node: Node, link: Link) -> Node | None:
        """The child of ``node`` with that key *and* that text; does not modify."""
        child = node.children.get(link.key)
        return child if child is not None and child.link.text == link.text else None

    def extend(self, node: Node, link: Link, block: BlockId, cost: float = 1.0) -> Node | None:
        """The child of the locked ``node`` for ``link``, to which the lock now extends: a new one
        that owns ``block``, or the one that is there (its block is another). None and no change if
        another text has that key: not cacheable."""
        child = node.children.get(link.key)
        if child is not None and child.link.text != link.text:
            return None
        if child is None:
            child = node.children[link.key] = Node(link, block, node, node.salt, cost)
            self.num_blocks += 1
            self.num_evictable += 1
            self.version += 1
        self._lock_one(child)
        return child

    def lock(self, node: Node) -> None:
        """Keep ``node`` and all above it from eviction."""
        for each in _path(node):
            self._lock_one(each)

    def unlock(self, node: Node, *, is_used: bool = True) -> None:
        """Undo one ``lock`` (with its extensions). All of the path counts as used now, unless the
        lock came to nothing."""
        for each in list(_path(node)):
            if each.locks < 1:
                raise InvariantBroken("unlock: the node is not locked")
            each.locks -= 1
            if each.parent is None:
                self._prune(each)
                continue
            if is_used:
                self._idle_leaves.use(each)
            if each.locks == 0:
                self.num_evictable += 1
                self._queue(each)

    def evict(self) -> Node | None:
        """Forget the idle leaf that is worth least and return it; None if there is none."""
        node = self._idle_leaves.pop()
        if node is None or node.parent is None:
            return None
        del node.parent.children[node.link.key]
        self.num_blocks -= 1
        self.num_evictable -= 1
        self.version += 1
        if node.parent.parent is None:
            self._prune(node.parent)
        else:
            self._queue(node.parent)
        return node

    def nodes(self) -> Iterator[Node]:
        """Every cached block's node, parents first."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> None:
        """Raise InvariantBroken unless counters, links, locks and the eviction queue agree."""
        nodes = list(self.nodes())
        self._idle_leaves.check()
        if len(nodes) != self.num_blocks:
            raise InvariantBroken("radix: num_blocks is wrong")
        if sum(node.locks == 0 for node in nodes) != self.num_evictable:
            raise InvariantBroken("radix: num_evictable is wrong")
        if {node for node in nodes if _is_idle_leaf(node)} != set(self._idle_leaves):
            raise InvariantBroken("radix: what can be evicted is not what is idle")
        for node in nodes:
            parent = node.parent
            if parent is None or parent.children.get(node.link.key) is not node:
                raise InvariantBroken("radix: a child is not its parent's")
            if sum(child.locks for child in node.children.values()) > node.locks:
                raise InvariantBroken("radix: a node is locked less than its children")
            if parent.parent is not None and node.num_uses > parent.num_uses:
                raise InvariantBroken("radix: a node is used more often than its parent")
        for root in self._roots.values():
            if not root.children and not root.locks:
                raise InvariantBroken("radix: an empty root is kept")

    def _lock_one(self, node: Node) -> None:
        if node.parent is not None and node.locks == 0:
            self.num_evictable -= 1
            self._idle_leaves.discard(node)
        node.locks += 1

    def _queue(self, node: Node) -> None:
        if _is_idle_leaf(node):
            self._idle_leaves.put(node)

    def _prune(self, root: Node) -> None:
        if not root.children and not root.locks:
            self._roots.pop(root.salt, None)


def _is_idle_leaf(node: Node) -> bool:
    return node.locks == 0 and not node.children


def _path(node: Node | None) -> Iterator[Node]:
    """``node`` and all above it, the root last."""
    while node is not None:
        yield node
        node = node.parent


def path_to(node: Node | None) -> list[Node]:
    """The cached blocks from the first one on to ``node``."""
    return [each for each in _path(node) if each.parent is not None][::-1]
