from typing import NamedTuple

import pytest

from tests.machines import Counted, run
from triptych.cache.embeddings import EmbeddingCache, EntryState
from triptych.cache.eviction import ORDERS, Recompute
from triptych.core.errors import InvariantBroken
from triptych.core.hashing import digest

SIZE = 4
NUM_BLOCKS = 9
LENGTHS = {"a": 1, "b": 4, "c": 7, "d": 9, "e": 17}
KEYS = {name: digest("item", name.encode()) for name in LENGTHS}
NAME_OF = {key: name for name, key in KEYS.items()}
NAMES = sorted(LENGTHS)


def item(name: str):
    return KEYS[name], LENGTHS[name]


class Idle(NamedTuple):
    """How the model knows a READY entry."""

    num_uses: int
    rank: float
    tick: int


class EmbeddingMachine(Counted):
    """A cache beside the rows of its store, by block, and beside a dict of its READY entries from
    which victims are picked by looking at all. Every hold is kept with its name."""

    operations = ("acquire", "reserve_all", "reserve_all", "commit", "commit", "abort", "hand_over",
                  "release", "release", "release")  # fmt: skip
    order = "lru"

    def __init__(self):
        super().__init__()
        self.cache = EmbeddingCache(NUM_BLOCKS, SIZE, order=ORDERS[self.order])
        self.cache.watchers.add(self)
        self.store: dict[int, str] = {}
        self.holds = []
        self.ready: dict[str, Idle] = {}
        self.floor = 0.0
        self.tick = 0

    def stored(self, key, blocks):
        self.ready[NAME_OF[key]] = Idle(0, 0.0, 0)

    def evicted(self, key, blocks):
        """The victim is the one of least rank, of equals the one unused for longest."""
        held = {name for name, entry in self.holds if entry.is_ready} | self.wanted
        idle = [name for name in self.ready if name not in held]
        victim = min(idle, key=lambda name: self.ready[name][1:])
        assert victim == NAME_OF[key]
        self.floor = max(self.floor, self.ready.pop(victim).rank)
        assert {self.store[block] for block in blocks} == {victim}

    def use(self, name):
        uses = self.ready[name].num_uses + 1
        num_tokens = LENGTHS[name]
        capacity = -(-num_tokens // SIZE) * SIZE
        cost = Recompute().of_embedding(num_tokens, capacity)
        ranks = {"lru": 0.0, "lfu": self.floor + uses, "cost": self.floor + uses * cost}
        self.tick += 1
        self.ready[name] = Idle(uses, ranks[self.order], self.tick)

    def pick(self, choices, condition):
        picked = [index for index, (_, entry) in enumerate(self.holds) if condition(entry)]
        return choices.of(picked) if picked else None

    def acquire(self, choices):
        name = choices.of(NAMES)
        entry = self.cache.acquire(KEYS[name])
        if entry is None:
            assert not any(n == name and e.state is not EntryState.FAILED for n, e in self.holds)
            assert name not in self.ready
            return
        assert not entry.is_new
        self.holds.append((name, entry))

    def reserve_all(self, choices):
        names = [choices.of(NAMES) for _ in range(1 + choices.below(4))]
        before = self.cache.totals()
        self.wanted = set(names)
        entries = self.cache.reserve_all([item(name) for name in names], "owner")
        if entries is None:
            assert self.cache.totals() == before
            return
        assert [entry.key for entry in entries] == [KEYS[name] for name in names]
        new = [name for name, entry in zip(names, entries, strict=True) if entry.is_new]
        assert len(set(new)) == len(new)
        self.holds += zip(names, entries, strict=True)

    def commit(self, choices):
        if (index := self.pick(choices, lambda entry: entry.is_new)) is not None:
            name, entry = self.holds[index]
            self.store.update(dict.fromkeys(entry.blocks, name))
            self.cache.commit(entry)
            assert all(e.is_ready for n, e in self.holds if n == name and e.blocks == entry.blocks)

    def abort(self, choices):
        if (index := self.pick(choices, lambda entry: entry.is_new)) is not None:
            self.cache.abort(self.holds[index][1])
            assert self.holds[index][1].state is EntryState.FAILED

    def hand_over(self, choices):
        """The writer entrusts its part; somebody else takes it."""
        index = self.pick(choices, lambda entry: entry.is_new)
        if index is None:
            return
        entry = self.holds[index][1]
        self.cache.entrust(entry)
        assert entry.is_unwritten
        other = self.cache.acquire(entry.key)
        self.holds.append((self.holds[index][0], other))
        assert self.cache.claim(other)
        assert not self.cache.claim(entry)

    def release(self, choices):
        if not self.holds:
            return
        name, entry = self.holds.pop(choices.below(len(self.holds)))
        is_ready = entry.is_ready
        self.cache.release(entry)
        with pytest.raises(InvariantBroken):
            self.cache.release(entry)
        if is_ready and not any(n == name and e.is_ready for n, e in self.holds):
            self.use(name)

    def agree(self):
        self.cache.check()
        totals = self.cache.totals()
        used = {block for _, entry in self.holds for block in entry.blocks}
        assert totals["embedding_block.total"] == NUM_BLOCKS
        assert sum(totals.values()) - NUM_BLOCKS + len(used) == NUM_BLOCKS
        for name, entry in self.holds:
            if entry.is_ready:
                assert {self.store[block] for block in entry.blocks} == {name}
                assert name in self.ready

    def teardown(self):
        for _, entry in self.holds:
            self.cache.release(entry)
        self.cache.check()
        totals = self.cache.totals()
        assert totals["embedding_block.free"] + totals["embedding_block.cached"] == NUM_BLOCKS
        assert self.cache.holdings() == []


class LfuEmbeddingMachine(EmbeddingMachine):
    order = "lfu"


class CostEmbeddingMachine(EmbeddingMachine):
    order = "cost"


def test_embeddings_against_a_store_of_rows():
    machines = EmbeddingMachine, LfuEmbeddingMachine, CostEmbeddingMachine
    run("embeddings", *machines, examples=25)


def ready(cache, name):
    (entry,) = cache.reserve_all([item(name)])
    cache.commit(entry)
    return entry


def test_all_or_nothing():
    cache = EmbeddingCache(4, SIZE)
    assert cache.reserve_all([item("a"), item("e")]) is None
    assert cache.totals()["embedding_block.free"] == 4
    assert cache.acquire(KEYS["a"]) is None


def test_equal_keys_in_one_call_have_one_writer():
    cache = EmbeddingCache(4, SIZE)
    first, other, second = cache.reserve_all([item("b"), item("a"), item("b")])
    assert (first.is_new, other.is_new, second.is_new) == (True, True, False)
    assert first.blocks == second.blocks != other.blocks


def test_longest_unused_goes_first_and_wanted_ones_stay():
    cache = EmbeddingCache(3, SIZE)
    for name in "bac":
        assert cache.fits(LENGTHS[name])
    for name in "ba":
        cache.release(ready(cache, name))
    cache.release(cache.acquire(KEYS["b"]))  # used again: "a" is older now
    entries = cache.reserve_all([item("c")])
    assert entries is not None
    assert cache.acquire(KEYS["a"]) is None
    assert cache.acquire(KEYS["b"]) is not None


def test_what_is_asked_for_is_not_evicted_for_its_neighbour():
    cache = EmbeddingCache(3, SIZE)
    cache.release(ready(cache, "b"))
    cache.release(ready(cache, "a"))
    entries = cache.reserve_all([item("c"), item("b")])
    assert [entry.is_new for entry in entries] == [True, False]
    assert entries[1].is_ready
    assert cache.reserve_all([item("a")]) is None


@pytest.mark.parametrize("state", [EntryState.FAILED, EntryState.READY])
def test_waiters_learn_what_became_of_it(state):
    cache, heard = EmbeddingCache(9, SIZE), []

    def hear(entry):
        heard.append((entry, entry.state))

    (writer,) = cache.reserve_all([item("a")])
    waiter, gone = cache.acquire(KEYS["a"]), cache.acquire(KEYS["a"])
    for entry in (writer, waiter, gone):
        entry.watch(hear)
    cache.release(gone)
    assert heard == []
    (cache.commit if state is EntryState.READY else cache.abort)(writer)
    assert heard == [(writer, state), (waiter, state)]
    waiter.watch(hear)
    assert heard[2:] == [(waiter, state)]


def test_waiters_learn_that_the_writer_hands_on():
    cache, heard, room = EmbeddingCache(9, SIZE), [], []
    (writer,) = cache.reserve_all([item("a")])
    one, two = cache.acquire(KEYS["a"]), cache.acquire(KEYS["a"])
    cache.watch_room(lambda: room.append(1))
    one.watch(heard.append)
    two.watch(heard.append)
    cache.entrust(writer)
    assert heard == [one, two]
    assert len(room) == 1
    two.watch(heard.append)
    assert heard[2:] == [two], "nobody writes it: that is known already"
    cache.release(writer)
    assert cache.claim(two)
    one.watch(heard.append)
    assert len(heard) == 3
    cache.commit(two)
    assert heard[3:] == [one]


def test_writer_that_lets_go_fails_the_entry():
    cache = EmbeddingCache(9, SIZE)
    (writer,) = cache.reserve_all([item("a")])
    waiter = cache.acquire(KEYS["a"])
    cache.release(writer)
    assert waiter.state is EntryState.FAILED
    assert cache.acquire(KEYS["a"]) is None
    (again,) = cache.reserve_all([item("a")])
    assert again.is_new
    assert not set(again.blocks) & set(waiter.blocks)


def test_room_watchers_hear_of_release_commit_and_abort():
    cache, heard = EmbeddingCache(9, SIZE), []
    cache.watch_room(lambda: heard.append(1))
    (entry,) = cache.reserve_all([item("a")])
    assert not heard
    cache.commit(entry)
    assert len(heard) == 1
    cache.release(entry)
    assert len(heard) == 2


def test_holdings_name_the_owners():
    cache = EmbeddingCache(9, SIZE)
    cache.reserve_all([item("c"), item("a")], "one")
    cache.acquire(KEYS["c"], "two")
    assert {(h.kind, h.owner, h.count) for h in cache.holdings()} == {
        ("embedding_block", "one", 3),
        ("embedding_block", "two", 2),
    }


def test_misuse_is_found():
    cache = EmbeddingCache(9, SIZE)
    (entry,) = cache.reserve_all([item("a")])
    with pytest.raises(InvariantBroken, match="two lengths"):
        cache.reserve_all([(KEYS["a"], 5)])
    with pytest.raises(InvariantBroken, match="two lengths"):
        cache.reserve_all([(KEYS["b"], 5), (KEYS["b"], 4)])
    with pytest.raises(InvariantBroken, match="only the writer"):
        cache.commit(cache.acquire(KEYS["a"]))
    cache.commit(entry)
    with pytest.raises(InvariantBroken, match="only the writer"):
        cache.abort(entry)
    assert not cache.fits(LENGTHS["e"], LENGTHS["e"])
    assert cache.fits(LENGTHS["e"], LENGTHS["b"], LENGTHS["d"])
