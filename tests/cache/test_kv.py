import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from triptych.cache.kv import KvCache
from triptych.core.errors import InvariantBroken
from triptych.core.hashing import block_key, digest
from triptych.core.ids import ContentHash, JobId
from triptych.core.request import Item

SIZE = 3
NUM_BLOCKS = 11


def weak_key(parent, tokens, items=()):
    """Four bits of the real key: collisions everywhere."""
    return ContentHash(bytes([block_key(parent, tokens, items)[0] & 15]))


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


class KvMachine(RuleBasedStateMachine):
    """A cache beside the contents of its store: what a block holds is the text it was written for,
    so a wrong hit, a block shared by mistake or one reused too early shows as wrong contents."""

    key_of = staticmethod(block_key)

    def __init__(self):
        super().__init__()
        self.cache = make(key_of=self.key_of)
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

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=17),
        salt=st.sampled_from([b"a", b"b"]),
        item=st.none() | st.tuples(st.integers(0, 8), st.integers(1, 5), st.sampled_from("pq")),
        spare=st.integers(0, 2),
        align=st.sampled_from([1, 1, 2, 6]),
    )
    def open(self, tokens, salt, item, spare, align):
        items = ()
        if item is not None and item[0] + item[1] <= len(tokens):
            offset, length, name = item
            items = (picture(f"{name}{length}", offset, length),)
            tokens[offset : offset + length] = [9] * length
        self.serial += 1
        table = self.cache.table(JobId(f"job-{self.serial}"), salt, list(tokens), items)
        available, before = self.cache.num_available, self.cache.totals()
        matched = self.cache.match(table, len(tokens) - 1, align)
        assert self.cache.totals() == before
        done = self.cache.open(table, len(tokens), limit=len(tokens) - 1, align=align, spare=spare)
        if not done:
            assert self.cache.blocks_for(len(tokens)) - matched // SIZE + spare > (
                available - matched // SIZE
            )
            assert self.cache.totals() == before
            return
        assert table.hit_tokens == matched
        assert table.hit_tokens < len(tokens)
        assert table.hit_tokens % SIZE == table.hit_tokens % align == 0
        for index in range(table.hit_tokens // SIZE):
            assert self.store[table.blocks[index]] == self.text(table, index)
        assert self.cache.num_available >= spare
        self.tables[table.owner] = table
        self.computed[table.owner] = table.hit_tokens

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), count=st.integers(1, 5), commits=st.booleans())
    def compute(self, data, count, commits):
        """Write the KV of some more tokens, and perhaps make it findable."""
        table = self.tables[data.draw(st.sampled_from(sorted(self.tables)))]
        start = self.computed[table.owner]
        end = min(start + count, len(table.tokens))
        for index in range(start // SIZE, self.cache.blocks_for(end)):
            self.store[table.blocks[index]] = self.text(table, index)
        self.computed[table.owner] = end
        if commits:
            self.cache.commit(table, end)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def grow(self, data, tokens):
        table = self.tables[data.draw(st.sampled_from(sorted(self.tables)))]
        wanted = len(table.tokens) + len(tokens)
        available, before = self.cache.num_available, self.cache.totals()
        missing = self.cache.blocks_for(wanted) - len(table.blocks)
        assert self.cache.grow(table, wanted) == (missing <= available)
        if missing > available:
            assert self.cache.totals() == before
        else:
            table.tokens.extend(tokens)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        owner = data.draw(st.sampled_from(sorted(self.tables)))
        self.cache.release(self.tables.pop(owner))
        assert self.computed.pop(owner) >= 0

    @invariant()
    def is_consistent(self):
        self.cache.check()
        used = {block for table in self.tables.values() for block in table.blocks}
        totals = self.cache.totals()
        assert totals["kv_block.total"] == NUM_BLOCKS
        assert totals["kv_block.free"] + totals["kv_block.cached"] + len(used) == NUM_BLOCKS
        assert len(self.cache.holdings()) == len(self.tables)

    @invariant()
    def what_was_computed_is_still_there(self):
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


class WeakKvMachine(KvMachine):
    """The same with a hash of four bits: hits may be missed, never wrong (threat S20)."""

    key_of = staticmethod(weak_key)


for machine in (KvMachine, WeakKvMachine):
    machine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestKv = KvMachine.TestCase
TestKvWithWeakHash = WeakKvMachine.TestCase


def test_later_sequence_finds_full_blocks_of_an_earlier_one():
    cache = make()
    first = fill(cache, "a", range(8))
    blocks = list(first.blocks)
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
