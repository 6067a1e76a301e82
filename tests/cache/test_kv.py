import pytest

from tests.machines import Counted, run
from triptych.cache.eviction import ORDERS
from triptych.cache.kv import KvCache
from triptych.core.errors import InvariantBroken
from triptych.core.hashing import digest, sha256
from triptych.core.ids import ContentHash, JobId
from triptych.core.request import Item

SIZE = 3
NUM_BLOCKS = 11


def weak(text):
    """Four bits of the real key: collisions everywhere."""
    return ContentHash(bytes([sha256(text)[0] & 15]))


def picture(name: str, offset: int, num_tokens: int) -> Item:
    return Item(digest("item", name.encode()), offset, num_tokens, (1, 2, 2 * num_tokens))


def make(num_blocks=NUM_BLOCKS, size=SIZE, **options):
    return KvCache(num_blocks, size, "model", **options)


def fill(cache, owner, tokens, *, salt=b"", items=(), limit=None):
    """Open, compute everything and commit it. The table, still open."""
    table = cache.table(JobId(owner), salt, list(tokens), items)
    limit = len(table.tokens) - 1 if limit is None else limit
    assert cache.open(table, len(table.tokens), limit=limit)
    cache.commit(table, len(table.tokens))
    return table


class Findable:
    """A naive model of what can be found: the keys that were stored and not evicted since."""

    def __init__(self):
        self.blocks: dict[bytes, int] = {}

    def stored(self, key, blocks):
        assert key not in self.blocks
        (self.blocks[key],) = blocks

    def evicted(self, key, blocks):
        assert (self.blocks.pop(key),) == blocks


class KvMachine(Counted):
    """A cache beside the contents of its store: what a block holds is the text it was written for,
    so a wrong hit, a block shared by mistake or one reused too early shows as wrong contents."""

    operations = ("open", "open", "compute", "compute", "compute", "grow", "release", "release")
    hashed = staticmethod(sha256)
    is_exact = True
    """Whether no two texts have one key, so that every text that was stored is found."""
    order = "lru"

    def __init__(self):
        super().__init__()
        self.cache = make(hashed=self.hashed, order=ORDERS[self.order])
        self.findable = Findable()
        self.cache.watchers.add(self.findable)
        self.store: dict[int, tuple] = {}
        self.tables = {}
        self.computed = {}
        self.serial = 0

    @staticmethod
    def text(table, block_index):
        """All that decides the KV of one block: salt, every token and item up to its end."""
        end = min((block_index + 1) * SIZE, len(table.tokens))
        items = tuple((i.offset, i.key) for i in table.items if i.offset < end)
        return table.salt, tuple(table.tokens[:end]), items

    def draw(self, choices):
        """A closed table of a few tokens of two kinds, perhaps with a picture."""
        tokens = [choices.below(2) for _ in range(1 + choices.below(17))]
        items = ()
        offset, length = choices.below(9), 1 + choices.below(5)
        if choices.below(2) and offset + length <= len(tokens):
            items = (picture(f"{choices.of('pq')}{length}", offset, length),)
            tokens[offset : offset + length] = [9] * length
        self.serial += 1
        return self.cache.table(
            JobId(f"job-{self.serial}"), choices.of((b"a", b"b")), tokens, items
        )

    def open(self, choices):
        align, spare = choices.of((1, 1, 2, 6)), choices.below(3)
        table = self.draw(choices)
        size = len(table.tokens)
        available, before = self.cache.num_available, self.cache.totals()
        matched = self.cache.match(table, size - 1, align)
        assert self.cache.totals() == before
        if self.is_exact:
            assert matched == self.expected_hit(table, size - 1, align)
        done = self.cache.open(table, size, limit=size - 1, align=align, spare=spare)
        if not done:
            assert self.cache.blocks_for(size) - matched // SIZE + spare > (
                available - matched // SIZE
            )
            assert self.cache.totals() == before
            return
        assert table.hit_tokens == matched
        assert table.hit_tokens < size
        assert table.hit_tokens % SIZE == table.hit_tokens % align == 0
        for index in range(table.hit_tokens // SIZE):
            assert self.store[table.blocks[index]] == self.text(table, index)
        assert self.cache.num_available >= spare
        self.tables[table.owner] = table
        self.computed[table.owner] = table.hit_tokens

    def expected_hit(self, table, limit, align):
        hit = end = 0
        for key in self.cache.keys(table, limit):
            if key not in self.findable.blocks:
                break
            end += SIZE
            hit = end if end % align == 0 else hit
        return hit

    def compute(self, choices):
        """Write the KV of some more tokens, and perhaps make it findable."""
        if not self.tables:
            return
        table = self.tables[choices.of(sorted(self.tables))]
        start = self.computed[table.owner]
        end = min(start + 1 + choices.below(5), len(table.tokens))
        if start < end:
            self.cache.begin_write(table, start, end)
            table.is_writing = False
        for index in range(start // SIZE, self.cache.blocks_for(end)):
            self.write(table, index)
        self.computed[table.owner] = end
        if choices.below(2):
            self.cache.commit(table, end)

    def write(self, table, index):
        """Copy-on-write: what is written is seen by nobody else, and cannot be found."""
        block = table.blocks[index]
        assert block not in self.findable.blocks.values()
        assert [other.owner for other in self.tables.values() if block in other.blocks] == [
            table.owner
        ]
        self.store[block] = self.text(table, index)

    def grow(self, choices):
        if not self.tables:
            return
        table = self.tables[choices.of(sorted(self.tables))]
        tokens = [choices.below(2) for _ in range(1 + choices.below(4))]
        wanted = len(table.tokens) + len(tokens)
        available, before = self.cache.num_available, self.cache.totals()
        missing = self.cache.blocks_for(wanted) - len(table.blocks)
        assert self.cache.grow(table, wanted) == (missing <= available)
        if missing > available:
            assert self.cache.totals() == before
        else:
            table.tokens.extend(tokens)

    def release(self, choices):
        if self.tables:
            owner = choices.of(sorted(self.tables))
            self.cache.release(self.tables.pop(owner))
            assert self.computed.pop(owner) >= 0

    def agree(self):
        self.cache.check()
        used = {block for table in self.tables.values() for block in table.blocks}
        totals = self.cache.totals()
        assert totals["kv_block.total"] == NUM_BLOCKS
        assert totals["kv_block.free"] + totals["kv_block.cached"] + len(used) == NUM_BLOCKS
        assert totals["kv_block.cached"] == len(set(self.findable.blocks.values()) - used)
        assert len(self.cache.holdings()) == len(self.tables)
        for owner, table in self.tables.items():
            for index in range(self.computed[owner] // SIZE):
                assert self.store[table.blocks[index]] == self.text(table, index)

    def teardown(self):
        for table in self.tables.values():
            self.cache.release(table)
        self.cache.check()
        totals = self.cache.totals()
        assert totals["kv_block.free"] + totals["kv_block.cached"] == NUM_BLOCKS
        assert self.cache.num_available == NUM_BLOCKS


class LfuKvMachine(KvMachine):
    order = "lfu"


class CostKvMachine(KvMachine):
    order = "cost"


class WeakKvMachine(KvMachine):
    """The same with a hash of four bits: hits may be missed, never wrong (threat S20)."""

    hashed = staticmethod(weak)
    is_exact = False

    def __init__(self):
        super().__init__()
        self.findable.stored = self.findable.evicted = lambda key, blocks: None

    def agree(self):
        """The model would need the tree itself to know which of two equal keys is where."""
        self.findable.blocks = {bytes([n.block]): n.block for n in self.cache._tree.nodes()}
        super().agree()


def test_kv_against_a_store_of_texts():
    run("kv", KvMachine, LfuKvMachine, CostKvMachine, WeakKvMachine, examples=25)


def test_later_sequence_finds_full_blocks_of_an_earlier_one():
    cache = make()
    first = fill(cache, "a", range(8))
    blocks = first.blocks
    second = fill(cache, "b", range(8))
    assert second.hit_tokens == 6
    assert second.blocks[:2] == blocks[:2]
    assert second.blocks[2] != blocks[2]


@pytest.mark.parametrize("length", [3, 6, 7, 9])
def test_last_token_is_never_a_hit_unless_allowed(length):
    cache = make()
    cache.release(fill(cache, "a", range(length)))
    table = cache.table(JobId("b"), b"", list(range(length)))
    assert cache.match(table, length - 1) == (length - 1) // SIZE * SIZE
    assert cache.match(table, length) == length // SIZE * SIZE


def test_other_tenant_shares_nothing():
    cache = make()
    cache.release(fill(cache, "a", range(9), salt=b"one"))
    table = cache.table(JobId("b"), b"two", list(range(9)))
    assert cache.match(table, 9) == 0


@pytest.mark.parametrize(
    ("name", "offset", "hit"), [("cat", 2, 9), ("dog", 2, 0), ("cat", 3, 0), ("cat", 1, 0)]
)
def test_picture_and_its_offset_are_part_of_the_text(name, offset, hit):
    """The placeholder tokens are all alike: only the item tells two pictures apart."""
    cache = make()
    cache.release(fill(cache, "a", [9] * 10, items=(picture("cat", 2, 4),)))
    table = cache.table(JobId("b"), b"", [9] * 10, (picture(name, offset, 4),))
    assert cache.match(table, 10) == hit


def test_keys_are_chained_to_everything_before():
    cache = make()
    keys = set()
    for index, tokens in enumerate([[1, 2, 3] * 3, [4, 4, 4, 1, 2, 3], [1, 2, 3]]):
        table = fill(cache, f"{index}", tokens, salt=b"one" if len(tokens) > 3 else b"two")
        keys |= {link.key for link in table.links}
    assert len(keys) == 3 + 2 + 1


def test_uncommitted_blocks_are_not_found():
    cache = make()
    table = cache.table(JobId("a"), b"", list(range(9)))
    assert cache.open(table, 9, limit=8)
    cache.commit(table, 5)
    cache.release(table)
    assert cache.match(cache.table(JobId("b"), b"", list(range(9))), 9) == 3


def test_two_that_computed_the_same_keep_their_own_blocks_and_go_on_together():
    cache = make()
    tables = [cache.table(JobId(name), b"", list(range(7))) for name in "ab"]
    for table in tables:
        assert cache.open(table, 7, limit=6)
    for table in tables:
        cache.commit(table, 7)
    assert not set(tables[0].blocks) & set(tables[1].blocks)
    tables[1].tokens += [50, 51]
    cache.commit(tables[1], 9)
    for table in tables:
        cache.release(table)
    assert cache.match(cache.table(JobId("c"), b"", [*range(7), 50, 51, 1]), 9) == 9


def test_longest_unused_leaf_goes_first():
    cache = make(num_blocks=4)
    for owner, start in (("a", 0), ("b", 100)):
        cache.release(fill(cache, owner, range(start, start + 6)))
    assert cache.match(cache.table(JobId("x"), b"", list(range(6))), 6) == 6
    cache.release(fill(cache, "c", range(6)))  # used again: "b" is now the older one
    cache.release(fill(cache, "d", range(200, 203)))
    assert cache.match(cache.table(JobId("x"), b"", list(range(6))), 6) == 6
    assert cache.match(cache.table(JobId("x"), b"", list(range(100, 106))), 6) == 3


def test_without_prefix_nothing_is_kept():
    cache = make(prefix=False)
    cache.release(fill(cache, "a", range(9)))
    assert cache.totals()["kv_block.free"] == NUM_BLOCKS
    assert cache.match(cache.table(JobId("b"), b"", list(range(9))), 9) == 0


def test_release_during_a_write_is_refused():
    cache = make()
    table = fill(cache, "a", range(4))
    table.is_writing = True
    with pytest.raises(InvariantBroken, match="being written"):
        cache.release(table)


def test_released_tenants_leave_no_root_behind():
    cache = make(prefix=False)
    for index in range(20):
        cache.release(fill(cache, f"{index}", range(4), salt=bytes([index])))
    assert not cache._tree._roots


def test_eviction_queue_stays_bounded():
    cache = make()
    for index in range(500):
        cache.release(fill(cache, f"{index}", range(6)))
    assert len(cache._tree._idle_leaves._heap) <= 2 * cache._tree.num_blocks + 65
    cache.check()


def test_a_shared_block_is_never_written():
    """Copy-on-write: whoever must write where a block is shared has a block of its own there."""
    cache = make()
    first = fill(cache, "a", range(6))
    second = cache.table(JobId("b"), b"", list(range(6)))
    assert cache.open(second, 6, limit=5)  # all is cached; the last token is computed all the same
    assert second.blocks[0] == first.blocks[0]
    assert second.blocks[1] != first.blocks[1]
    cache.begin_write(second, 3, 6)
    assert second.is_writing
    for table, start, end in ((second, 2, 6), (first, 5, 6), (first, 0, 1)):
        with pytest.raises(InvariantBroken, match="is shared"):
            cache.begin_write(table, start, end)
    with pytest.raises(InvariantBroken, match="no such blocks"):
        cache.begin_write(second, 5, 7)


def test_choices_that_part_inside_a_block_never_share_it():
    cache = make()
    parent = fill(cache, "a", range(7))
    choices = [fill(cache, f"{end}", [*range(7), end]) for end in (50, 60)]
    assert [table.blocks[:2] for table in choices] == [parent.blocks[:2]] * 2
    for table in choices:
        assert table.hit_tokens == 6
        cache.begin_write(table, 6, 8)
    assert len({table.blocks[2] for table in (parent, *choices)}) == 3


def test_looking_and_failing_to_open_is_no_use():
    """A sequence that waits for room asks again and again: its prefix is not used by that."""
    cache = make(num_blocks=5)
    cache.release(fill(cache, "a", range(3)))
    cache.release(fill(cache, "b", range(10, 13)))
    version = cache.version
    for _ in range(3):
        waiting = cache.table(JobId("w"), b"", [*range(3), *range(50, 80)])
        assert cache.match(waiting, 30) == 3
        assert not cache.open(waiting, 33, limit=32)
    assert cache.version == version, "a waiting sequence need not look again"
    cache.release(fill(cache, "c", range(20, 32)))
    assert cache.version != version
    assert cache.match(waiting, 30) == 0, "it was the one unused for longest"


def test_misuse_is_found():
    cache = make()
    table = fill(cache, "a", range(4))
    with pytest.raises(InvariantBroken, match="blocks already"):
        cache.open(table, 4, limit=3)
    with pytest.raises(InvariantBroken, match="no such blocks"):
        cache.commit(table, 7)
    cache.release(table)
    with pytest.raises(InvariantBroken, match="is closed"):
        cache.grow(table, 4)
    cache._pool.take(1)
    with pytest.raises(InvariantBroken, match="has no owner"):
        cache.check()
