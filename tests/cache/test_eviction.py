import pytest

from triptych.cache.embeddings import EmbeddingCache
from triptych.cache.eviction import ORDERS, Evictable, EvictionQueue, Recompute, greedy_dual, lfu
from triptych.cache.kv import KvCache
from triptych.core.config import CacheConfig, load
from triptych.core.errors import ConfigError, InvariantBroken
from triptych.core.hashing import digest
from triptych.core.ids import JobId
from triptych.core.request import Item

FLAT = Recompute(horizon_tokens=1e18, encode_tokens=0.0, encode_horizon_tokens=1e18)


def queue(order, *uses, costs=None):
    """A queue of entries, used so often each, one after another."""
    made = EvictionQueue(ORDERS[order])
    entries = [Evictable(cost) for cost in costs or [1.0] * len(uses)]
    for entry, number in zip(entries, uses, strict=True):
        for _ in range(number):
            made.use(entry)
        made.put(entry)
    return made, entries


def places(made, entries):
    """The order in which they go."""
    return [entries.index(made.pop()) for _ in entries]


def test_each_order_sees_what_it_should():
    uses, costs = (3, 1, 2), (1.0, 9.0, 1.0)
    assert places(*queue("lru", *uses, costs=costs)) == [0, 1, 2]
    assert places(*queue("lfu", *uses, costs=costs)) == [1, 2, 0]
    assert places(*queue("cost", *uses, costs=costs)) == [2, 0, 1]


@pytest.mark.parametrize("order", ORDERS)
def test_of_equals_the_one_unused_for_longest_goes(order):
    made, entries = queue(order, 2, 2, 2)
    made.discard(entries[0])
    made.put(entries[0])  # it was asked for and not used
    assert places(made, entries) == [0, 1, 2]


@pytest.mark.parametrize("order", [lfu, greedy_dual])
def test_what_was_used_often_long_ago_goes_at_last(order):
    """Without ageing a favourite of old days would stay for ever."""
    made = EvictionQueue(order)
    favourite = Evictable()
    for _ in range(20):
        made.use(favourite)
    made.put(favourite)
    for turn in range(30):
        new = Evictable()
        made.use(new)
        made.put(new)
        if made.pop() is favourite:
            assert turn == 19, "it was used twenty times"
            return
    raise AssertionError("it stayed for ever")


def test_misuse_of_the_queue_is_found():
    made, (entry,) = queue("lru", 1)
    with pytest.raises(InvariantBroken, match="could be evicted"):
        made.use(entry)
    entry.place = (5.0, 5)
    with pytest.raises(InvariantBroken, match="while it could be"):
        made.check()
    made._heap.clear()
    with pytest.raises(InvariantBroken, match="never be evicted"):
        made.check()


def test_the_queue_stays_bounded():
    made, entries = queue("lfu", *[1] * 5)
    for turn in range(1000):
        entry = entries[turn % 5]
        made.discard(entry)
        made.use(entry)
        made.put(entry)
        made.check()
    assert len(made._heap) <= 2 * 5 + 65
    assert len(made) == 5
    assert entries[0] in made


def test_costs_from_numbers_worked_out_by_hand():
    model = Recompute(horizon_tokens=100.0, encode_tokens=0.5, encode_horizon_tokens=40.0)
    assert model.of_block(0, 10) == pytest.approx(1.05)
    assert model.of_block(190, 210) == pytest.approx(3.0), (
        "attention to 200 tokens is twice a token"
    )
    assert model.of_block(190, 210, 30) == pytest.approx(3.75)
    assert model.of_embedding(20, 20) == pytest.approx(1.5)
    assert model.of_embedding(20, 24) == pytest.approx(1.25), "half-empty blocks are worth less"


def evicted(cache):
    """What a cache evicts from now on, by key."""

    class Heard(list):
        def stored(self, key, blocks): ...

        def evicted(self, key, blocks):
            self.append(key)

    cache.watchers.add(heard := Heard())
    return heard


def fill(cache, owner, tokens, items=()):
    table = cache.table(JobId(owner), b"", list(tokens), items)
    assert cache.open(table, len(table.tokens), limit=len(table.tokens))
    cache.commit(table, len(table.tokens))
    keys = cache.keys(table, len(table.tokens))
    cache.release(table)
    return keys


def test_the_prefix_cache_keeps_what_is_used_most():
    for order, kept in (("lru", 2), ("lfu", 1)):
        cache = KvCache(2, 4, "model", order=ORDERS[order])
        for number in range(3):
            fill(cache, f"often-{number}", [1] * 4)
        fill(cache, "once", [2] * 4)
        fill(cache, "new", [3] * 4)
        assert cache.match(cache.table(JobId("x"), b"", [kept] * 4), 4) == 4
        cache.check()


def test_deep_blocks_and_pictures_are_worth_more():
    """With the cost order an older prompt outlives a younger one if its loss costs an encode; and
    the encode is charged where the picture ends, because a prefix is lost from its end on."""
    for encode_tokens, first_lost in ((1.0, "text"), (0.0, "picture")):
        model = Recompute(horizon_tokens=1e18, encode_tokens=encode_tokens)
        cache = KvCache(4, 4, "model", order=ORDERS["cost"], recompute=model)
        item = Item(digest("item", b"p"), 1, 6, (1, 2, 12))
        keys = {"picture": fill(cache, "a", [9] * 8, (item,)), "text": fill(cache, "b", range(8))}
        heard = evicted(cache)
        fill(cache, "c", range(50, 58))
        assert heard == keys[first_lost][::-1]
    deep = KvCache(5, 4, "model", order=ORDERS["cost"], recompute=Recompute(horizon_tokens=8.0))
    keys = fill(deep, "deep", range(16))
    shallow = fill(deep, "shallow", range(100, 104))
    heard = evicted(deep)
    fill(deep, "new", range(200, 204))
    assert heard == shallow
    assert deep.match(deep.table(JobId("x"), b"", list(range(16))), 16) == 16
    assert len(keys) == 4


def test_the_embedding_cache_asks_the_order_too():
    for order, victim in (("lru", 0), ("lfu", 1), ("cost", 2)):
        cache = EmbeddingCache(9, 4, order=ORDERS[order], recompute=FLAT)
        names = [digest("item", bytes([number])) for number in range(3)]
        for name, num_tokens, num_uses in zip(names, (9, 12, 9), (2, 1, 1), strict=True):
            for _ in range(num_uses):
                (entry,) = cache.reserve_all([(name, num_tokens)])
                if entry.is_new:
                    cache.commit(entry)
                cache.release(entry)
        heard = evicted(cache)
        assert cache.reserve_all([(digest("item", b"new"), 1)])
        assert heard == [names[victim]], order
        cache.check()


def test_the_settings_name_the_orders():
    assert CacheConfig().eviction == "lru"
    for name in ORDERS:
        assert load(None, [f"cache.eviction={name}"], {}).cache.eviction == name
    with pytest.raises(ConfigError, match=r"cache\.eviction.*lru, lfu, cost"):
        load(None, ["cache.eviction=random"], {})
