"""The prefix tree: full blocks of sequences, shared by every sequence that begins the same way.

A radix tree whose edges are one block long (after SGLang's RadixAttention, arXiv 2312.07104,
section 3). Knows keys, texts, locks and recency. Does not know reference counts or who computes.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

from triptych.core.errors import InvariantBroken
from triptych.core.hashing import root_key
from triptych.core.ids import BlockId, ContentHash

KeyOf = Callable[[bytes, Sequence[int], Iterable[tuple[int, int, bytes]]], ContentHash]
"""``core.hashing.block_key``, or a weaker function in a test."""


class BlockText(NamedTuple):
    """What a block's KV was computed from, behind its parent: compared on every hit."""

    tokens: tuple[int, ...]
    items: tuple[tuple[int, int, bytes], ...] = ()
    """``(offset in the item, offset in the block, item key)`` of each overlapping item."""


class Link(NamedTuple):
    """A block's key and text."""

    key: ContentHash
    text: BlockText


class Node:
    """A cached block. ``locks`` counts the sequences that stand on it or below it."""

    __slots__ = ("block", "children", "last_used", "link", "locks", "parent", "salt")

    def __init__(self, link: Link, block: BlockId, parent: "Node | None", salt: bytes) -> None:
        self.link = link
        self.block = block
        self.parent = parent
        self.salt = salt
        self.children: dict[ContentHash, Node] = {}
        self.locks = 0
        self.last_used = 0


class RadixTree:
    """All cached blocks of one store. One root for each tenant salt: tenants never share (N11).

    Only leaves that nobody locks can be evicted, the one unused for longest first.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._roots: dict[bytes, Node] = {}
        self._ticks = count(1)
        self._heap: list[tuple[int, int, Node]] = []
        self.num_blocks = 0
        self.num_evictable = 0

    def root(self, salt: bytes) -> Node:
        """The root of ``salt``; lock it before anything else is called, or it may go."""
        root = self._roots.get(salt)
        if root is None:
            link = Link(root_key(salt, self._model), BlockText(()))
            root = self._roots[salt] = Node(link, BlockId(-1), None, salt)
        return root

    @staticmethod
    def find(node: Node, link: Link) -> Node | None:
        """The child of ``node`` with that key *and* that text; does not modify."""
        child = node.children.get(link.key)
        return child if child is not None and child.link.text == link.text else None

    def add(self, node: Node, link: Link, block: BlockId) -> Node | None:
        """The child of the locked ``node`` for ``link``: a new one that owns ``block``, or the one
        that is there (its block is another). None if another text has that key: not cacheable."""
        child = node.children.get(link.key)
        if child is not None:
            return child if child.link.text == link.text else None
        child = node.children[link.key] = Node(link, block, node, node.salt)
        self.num_blocks += 1
        self.num_evictable += 1
        self._touch(child)
        return child

    def lock(self, node: Node) -> None:
        """Keep ``node`` and all above it from eviction."""
        for each in _path(node):
            self._lock_one(each)

    def descend(self, child: Node) -> None:
        """Extend a lock that is held on ``child.parent`` to ``child``."""
        self._lock_one(child)

    def unlock(self, node: Node) -> None:
        """Undo one ``lock`` (with its descents). All of the path counts as used now."""
        for each in list(_path(node)):
            if each.locks < 1:
                raise InvariantBroken("unlock: the node is not locked")
            each.locks -= 1
            if each.parent is None:
                self._prune(each)
            else:
                self.num_evictable += each.locks == 0
                self._touch(each)
        self._compact()

    def evict(self) -> Node | None:
        """Forget the unlocked leaf unused for longest and return it; None if there is none."""
        while self._heap:
            tick, _, node = heapq.heappop(self._heap)
            if tick != node.last_used or not _is_idle_leaf(node) or node.parent is None:
                continue
            del node.parent.children[node.link.key]
            self.num_blocks -= 1
            self.num_evictable -= 1
            node.last_used = 0
            if node.parent.parent is None:
                self._prune(node.parent)
            elif _is_idle_leaf(node.parent):
                self._push(node.parent)
            return node
        return None

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
        queued = {id(node) for tick, _, node in self._heap if tick == node.last_used}
        if len(nodes) != self.num_blocks:
            raise InvariantBroken("radix: num_blocks is wrong")
        if sum(node.locks == 0 for node in nodes) != self.num_evictable:
            raise InvariantBroken("radix: num_evictable is wrong")
        for node in nodes:
            parent = node.parent
            if parent is None or parent.children.get(node.link.key) is not node:
                raise InvariantBroken("radix: a child is not its parent's")
            if sum(child.locks for child in node.children.values()) > node.locks:
                raise InvariantBroken("radix: a node is locked less than its children")
            if _is_idle_leaf(node) and id(node) not in queued:
                raise InvariantBroken("radix: an idle leaf would never be evicted")
        for root in self._roots.values():
            if not root.children and not root.locks:
                raise InvariantBroken("radix: an empty root is kept")

    def _lock_one(self, node: Node) -> None:
        if node.parent is not None and node.locks == 0:
            self.num_evictable -= 1
        node.locks += 1

    def _touch(self, node: Node) -> None:
        node.last_used = next(self._ticks)
        if _is_idle_leaf(node):
            self._push(node)

    def _push(self, node: Node) -> None:
        heapq.heappush(self._heap, (node.last_used, next(self._ticks), node))

    def _prune(self, root: Node) -> None:
        if not root.children and not root.locks:
            self._roots.pop(root.salt, None)

    def _compact(self) -> None:
        """Stale entries stay in the heap until popped; bound how many."""
        if len(self._heap) > 2 * self.num_blocks + 64:
            leaves = filter(_is_idle_leaf, self.nodes())
            self._heap = [(node.last_used, next(self._ticks), node) for node in leaves]
            heapq.heapify(self._heap)


def _is_idle_leaf(node: Node) -> bool:
    return node.locks == 0 and not node.children


def _path(node: Node | None) -> Iterator[Node]:
    """``node`` and all above it, the root last."""
    while node is not None:
        yield node
        node = node.parent
