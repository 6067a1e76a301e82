"""KV blocks of sequences: match -> reserve -> commit -> release, over one pool and one prefix tree.

Half-open intervals of one sequence's tokens, ``bs`` the block size; blocks are numbered alike::

    0             hit          committed     computed      capacity
    |-- shared ---|---- own, in the tree ----|---- own -----|
                                             '- the block being filled is never in the tree

    hit        = bs * blocks found in the tree when the table was opened; read, never written
    committed <= computed // bs * bs; the rest waits to be full, verified, or was refused
    capacity   = bs * len(blocks) >= every token whose KV has been or will be written

Copy-on-write is recomputation into an own block: what the tree holds is full and never written, so
a sequence that must write before a hit's end (its last token is always computed) gets a hit one
block shorter, and those that part inside a block never shared it.
Knows no engine. Lower tiers and the cluster's directory hear of its contents through ``watchers``.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from triptych.cache.eviction import Order, Recompute, lru
from triptych.cache.pool import BlockPool
from triptych.cache.radix import Link, Node, RadixTree, path_to
from triptych.cache.watch import Watchers
from triptych.core.census import Holding
from triptych.core.errors import InvariantBroken
from triptych.core.hashing import blocks, sha256
from triptych.core.ids import BlockId, ContentHash, JobId
from triptych.core.request import Item


class KvTable:
    """The blocks of one sequence. Made by ``KvCache.table``, changed only by that cache.

    ``tokens`` is the owner's own list: it may grow, what is in it never changes.
    """

    __slots__ = ("block_size", "blocks", "ends", "hit_tokens", "is_writing", "items", "links",
                 "node", "num_committed", "owner", "salt", "tokens")  # fmt: skip

    def __init__(
        self, owner: JobId, salt: bytes, tokens: list[int], items: Sequence[Item], block_size: int
    ) -> None:
        self.owner = owner
        self.salt = salt
        self.tokens = tokens
        self.items = tuple(items)
        self.ends = tuple(item.end for item in items)
        """Of the items: they are found by bisection, in prompts of hundreds of pictures too."""
        self.block_size = block_size
        self.blocks: tuple[BlockId, ...] = ()
        """Never changed in place: whoever was handed it may keep it, and know it again."""
        self.hit_tokens = 0
        self.num_committed = 0
        """Leading blocks whose text is in the tree, under this block or an equal one."""
        self.node: Node | None = None
        """Deepest node of the tree on this sequence's path, locked; None when nothing is held."""
        self.links: list[Link] = []
        self.is_writing = False
        """A step that writes to the blocks is being executed: nothing may be freed (N8)."""

    @property
    def is_open(self) -> bool:
        """Whether the table holds blocks."""
        return self.node is not None

    @property
    def capacity(self) -> int:
        """Tokens that the blocks have room for."""
        return len(self.blocks) * self.block_size

    def items_within(self, start: int, end: int) -> Sequence[Item]:
        """Items that overlap tokens ``[start, end)``, in order."""
        first = past = bisect_right(self.ends, start)
        while past < len(self.items) and self.items[past].offset < end:
            past += 1
        return self.items[first:past]


class KvCache:
    """KV blocks with prefix reuse. Every change is all or nothing.

    Args:
        num_blocks: size of the store.
        block_size: tokens in a block.
        model: fingerprint that separates the keys of different models.
        prefix: whether anything is kept for later sequences.
        order: what is evicted first.
        recompute: what it costs to lose a block, for an order that asks.
        hashed: makes the keys of blocks; only tests pass another.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        model: str,
        *,
        prefix: bool = True,
        order: Order = lru,
        recompute: Recompute | None = None,
        hashed: Callable[[bytes], ContentHash] = sha256,
    ) -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._tree = RadixTree(model, order)
        self._recompute = recompute or Recompute()
        self._prefix = prefix
        self._hashed = hashed
        self._open: dict[JobId, KvTable] = {}
        self.watchers = Watchers()

    @property
    def num_blocks(self) -> int:
        """Size of the store."""
        return self._pool.num_blocks

    @property
    def num_available(self) -> int:
        """Blocks that can be had now: free ones and cached ones that nobody locks."""
        return self._pool.num_free + self._tree.num_evictable

    @property
    def version(self) -> int:
        """Changes whenever ``match`` may answer otherwise than before."""
        return self._tree.version

    @property
    def num_open(self) -> int:
        """Tables that hold blocks."""
        return len(self._open)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def fits(self, num_tokens: int) -> bool:
        """Whether a sequence of ``num_tokens`` fits when it is alone."""
        return self.blocks_for(num_tokens) <= self._pool.num_blocks

    def table(
        self, owner: JobId, salt: bytes, tokens: list[int], items: Sequence[Item] = ()
    ) -> KvTable:
        """A closed table for a sequence; it costs nothing until it is opened."""
        return KvTable(owner, salt, tokens, items, self.block_size)

    def match(self, table: KvTable, limit: int, align: int = 1) -> int:
        """Tokens of ``table`` that the tree holds now: full blocks, at most ``limit`` tokens, a
        multiple of ``align``. Pure."""
        node = self._tree.root(table.salt)
        self._tree.lock(node)
        _, hit = self._walk(table, node, limit, align)
        self._tree.unlock(node)
        return hit

    def keys(self, table: KvTable, num_tokens: int) -> list[ContentHash]:
        """Keys of the full blocks within the first ``num_tokens`` tokens of ``table``, in order."""
        return [self._link(table, index).key for index in range(num_tokens // self.block_size)]

    def open(
        self, table: KvTable, num_tokens: int, *, limit: int, align: int = 1, spare: int = 0
    ) -> bool:
        """Reserve blocks for ``num_tokens`` tokens, the first of them from the tree.

        Args:
            table: a closed table.
            num_tokens: tokens to have room for, at least 1.
            limit: most tokens that may come from the tree. Below the sequence's length if its last
                token must be computed, so that a shared block is never written.
            align: the hit is a multiple of this many tokens (and of the block size).
            spare: blocks that must be left for others.

        Returns:
            Whether it was done; ``table.hit_tokens`` says what was found. False changes nothing.
        """
        if table.is_open or table.owner in self._open:
            raise InvariantBroken(f"open: {table.owner} has blocks already")
        root = self._tree.root(table.salt)
        self._tree.lock(root)
        node, hit = self._walk(table, root, min(limit, num_tokens), align)
        self._tree.lock(node)
        self._tree.unlock(root)
        shared = [each.block for each in path_to(node)]
        missing = self.blocks_for(num_tokens) - len(shared)
        if missing + spare > self.num_available:
            self._tree.unlock(node, is_used=False)
            return False
        self._pool.share(shared)
        table.blocks = (*shared, *self._take(missing))
        table.node, table.hit_tokens, table.num_committed = node, hit, len(shared)
        self._open[table.owner] = table
        return True

    def grow(self, table: KvTable, num_tokens: int) -> bool:
        """Have room for ``num_tokens`` tokens. False changes nothing."""
        missing = self.blocks_for(num_tokens) - len(table.blocks)
        if missing <= 0:
            return True
        if not table.is_open:
            raise InvariantBroken(f"grow: {table.owner} is closed")
        if missing > self.num_available:
            return False
        table.blocks += tuple(self._take(missing))
        return True

    def shrink(self, table: KvTable, num_tokens: int) -> None:
        """Give back the blocks behind those of the first ``num_tokens`` tokens, which nothing was
        committed to."""
        if table.is_writing or self.blocks_for(num_tokens) < table.num_committed:
            raise InvariantBroken(f"shrink: blocks of {table.owner} are in use")
        if spare := table.blocks[self.blocks_for(num_tokens) :]:
            table.blocks = table.blocks[: -len(spare)]
            self._pool.drop(spare)

    def begin_write(self, table: KvTable, start: int, end: int) -> None:
        """A step that writes the KV of tokens ``[start, end)`` is about to be executed: until
        ``table.is_writing`` is unset nothing is freed (N8). Raises InvariantBroken if anybody else
        could see one of the blocks."""
        if not table.is_open or end > table.capacity:
            raise InvariantBroken(f"write: {table.owner} has no such blocks")
        for block in table.blocks[start // self.block_size : self.blocks_for(end)]:
            if self._pool.count(block) > 1:
                raise InvariantBroken(f"write: a block of {table.owner} is shared")
        table.is_writing = True

    def commit(self, table: KvTable, num_tokens: int) -> None:
        """The KV of the first ``num_tokens`` tokens is in the blocks: full ones become findable.

        Call it only after the KV was computed, or received and verified (N9).
        """
        if table.node is None or num_tokens > table.capacity:
            raise InvariantBroken(f"commit: {table.owner} has no such blocks")
        if not self._prefix:
            return
        for index in range(table.num_committed, num_tokens // self.block_size):
            block = table.blocks[index]
            link, cost = self._link(table, index), self._cost(table, index)
            child = self._tree.extend(table.node, link, block, cost)
            if child is None:
                break  # another text with the same key: this sequence stays private from here on
            if child.block == block:
                self._pool.share((block,))
                self.watchers.stored(child.link.key, block)
            table.node = child
            table.num_committed = index + 1

    def release(self, table: KvTable) -> None:
        """Give all blocks back; committed ones stay findable until they are evicted."""
        if table.is_writing:
            raise InvariantBroken(f"release: blocks of {table.owner} are being written")
        if table.node is None:
            return
        self._tree.unlock(table.node)
        self._pool.drop(table.blocks)
        table.blocks, table.node, table.hit_tokens, table.num_committed = (), None, 0, 0
        del self._open[table.owner]

    def holdings(self) -> list[Holding]:
        """Blocks by owner; a shared block counts for each."""
        return [
            Holding("kv_block", table.owner, len(table.blocks)) for table in self._open.values()
        ]

    def totals(self) -> dict[str, int]:
        """Sizes for the census; ``cached`` blocks belong to the tree alone."""
        cached = sum(self._pool.count(node.block) == 1 for node in self._tree.nodes())
        return {
            "kv_block.total": self._pool.num_blocks,
            "kv_block.free": self._pool.num_free,
            "kv_block.cached": cached,
        }

    def check(self) -> None:
        """Raise InvariantBroken unless every reference and lock has its owner and every path its
        text."""
        self._pool.check()
        self._tree.check()
        counts = [0] * self._pool.num_blocks
        locks: dict[int, int] = {}
        for node in self._tree.nodes():
            counts[node.block] += 1
        for table in self._open.values():
            for block in table.blocks:
                counts[block] += 1
            if any(self._pool.count(block) != 1 for block in table.blocks[table.num_committed :]):
                raise InvariantBroken(f"kv: {table.owner} would write to a shared block")
            for depth, node in enumerate(path_to(table.node)):
                locks[id(node)] = locks.get(id(node), 0) + 1
                if node.link.text != self._link(table, depth).text:
                    raise InvariantBroken(f"kv: {table.owner} stands on another sequence's text")
        if any(counts[block] != self._pool.count(BlockId(block)) for block in range(len(counts))):
            raise InvariantBroken("kv: a reference has no owner")
        if any(node.locks != locks.get(id(node), 0) for node in self._tree.nodes()):
            raise InvariantBroken("kv: a lock has no owner")

    def _walk(self, table: KvTable, root: Node, limit: int, align: int) -> tuple[Node, int]:
        """Deepest node of the tree for ``table``, and its tokens, under ``limit`` and ``align``."""
        best, node, hit = root, root, 0
        for index in range(limit // self.block_size if self._prefix else 0):
            child = self._tree.find(node, self._link(table, index))
            if child is None:
                break
            node, end = child, (index + 1) * self.block_size
            if end % align == 0:
                best, hit = node, end
        return best, hit

    def _take(self, count: int) -> list[BlockId]:
        """``count`` blocks, counted before, evicting what is worth least."""
        while self._pool.num_free < count:
            node = self._tree.evict()
            if node is None:
                raise InvariantBroken("kv: fewer blocks than were counted")
            self.watchers.evicted(node.link.key, node.block)
            self._pool.drop((node.block,))
        return self._pool.take(count)

    def _link(self, table: KvTable, index: int) -> Link:
        if index >= len(table.links):
            self._know(table)
        if index >= len(table.links):
            raise InvariantBroken(f"text: block {index} of {table.owner} is not full")
        return table.links[index]

    def _know(self, table: KvTable) -> None:
        """Keys and texts of all blocks that the tokens fill by now."""
        known = table.links
        start, end = len(known) * self.block_size, len(table.tokens)
        parent = known[-1].key if known else self._tree.root(table.salt).link.key
        items = [
            (item.offset - start, item.end - start, bytes(item.key))
            for item in table.items_within(start, end)
        ]
        new = blocks(parent, table.tokens[start:], self.block_size, items, self._hashed)
        known += (Link(key, text) for key, text in new)

    def _cost(self, table: KvTable, index: int) -> float:
        """A prefix is lost from its end on. So the loss of an item begins, and costs its encoding,
        with the block in which the item ends."""
        start, end = index * self.block_size, (index + 1) * self.block_size
        ended = table.items[bisect_right(table.ends, start) : bisect_right(table.ends, end)]
        num_encoded = sum(item.num_tokens for item in ended) if ended else 0
        return self._recompute.of_block(start, end, num_encoded)
