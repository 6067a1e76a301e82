"""The directory on a real Redis and a real Valkey: what instances tell, routers know, whatever the
server goes through. Its user may run no script and no command beyond a handful."""

import asyncio
from contextlib import asynccontextmanager

import msgspec
import pytest
from redis.exceptions import NoPermissionError

from cluster import redis_directory
from cluster.bulletin import Bulletin
from cluster.catalog import Catalog
from cluster.redis_directory import RedisFollower, RedisPublisher
from tests.cluster.redis_server import redis_server
from tests.flow.served import free_ports
from tests.patience import PATIENCE_S
from triptych.cache.watch import Watchers
from triptych.core.catalog import CacheBatch, Change, Tier
from triptych.core.hashing import digest

pytestmark = pytest.mark.parametrize("kind", ["redis", "valkey"])
SECRET = b"s" * 32
FLUSH_S = 0.02


def key(*words):
    return digest("test", *(str(word).encode() for word in words))


class Shop:
    """One instance's cache and its way to the server."""

    def __init__(self, url, name, secret=SECRET, flush_s=FLUSH_S):
        self.name = name
        self.bulletin = Bulletin(flush_s)
        self.watchers = Watchers()
        self.bulletin.watch("kv", Tier.DEVICE, self.watchers)
        self.publisher = RedisPublisher((url, secret), name, self.bulletin.snapshot, flush_s)
        self.bulletin.sinks.append(self.publisher.publish)
        self.publisher.start()
        self.there = []

    def store(self, *words):
        self.there.append(key(self.name, *words))
        self.watchers.stored(self.there[-1], 0)

    def evict(self):
        self.watchers.evicted(self.there.pop(), 0)

    def is_known(self, catalog):
        """Whether the catalog holds exactly what is there."""
        shelf = catalog._shelves.get(self.name)
        return shelf is not None and set(shelf.keys["kv"]) == {each[:16] for each in self.there}

    async def close(self):
        self.bulletin.close()
        await self.publisher.close()


@asynccontextmanager
async def following(url, names, secret=SECRET):
    catalog = Catalog()
    follower = RedisFollower((url, secret), catalog, lambda: names)
    follower.start()
    try:
        yield catalog
    finally:
        await follower.close()


async def until(is_so, within_s=PATIENCE_S):
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("has_port", [False, True])
async def test_what_is_told_is_known(kind, has_port):
    port = free_ports(1)[0] if has_port else 0
    async with redis_server(kind, port) as server:
        a, b = Shop(server.url, "a@0"), Shop(server.url, "b@0")
        a.store("before anybody follows")
        async with following(server.url, ["a@0", "b@0"]) as catalog:
            await until(lambda: a.is_known(catalog) and b.is_known(catalog))
            for number in range(300):
                a.store(number)
                b.store(number)
                if number % 3 == 0:
                    b.evict()
                if number % 50 == 0:
                    await asyncio.sleep(0.05)
            await until(lambda: a.is_known(catalog) and b.is_known(catalog))
            assert len(a.there) == 301
            async with following(server.url, ["b@0"]) as late:
                await until(lambda: b.is_known(late))
                assert late.sequence("a@0") is None, "whoever is no member is of no interest"
        await a.close()
        await b.close()


async def test_a_death_is_survived_by_all(kind):
    async with redis_server(kind) as server:
        a = Shop(server.url, "a@0")
        a.store("first")
        async with following(server.url, ["a@0"]) as catalog:
            await until(lambda: a.is_known(catalog))
            await server.kill()
            a.store("while it is away")
            await until(lambda: catalog.sequence("a@0") is None)
            await server.start()
            await until(lambda: a.is_known(catalog))
            a.evict()
            await until(lambda: a.is_known(catalog))
            assert len(a.there) == 1
        await a.close()


async def test_a_server_that_comes_late_is_waited_for(kind):
    async with redis_server(kind) as server:
        await server.kill()
        a = Shop(server.url, "a@0")
        a.store("first")
        async with following(server.url, ["a@0"]) as catalog:
            await asyncio.sleep(0.4)
            await server.start()
            await until(lambda: a.is_known(catalog))
        await a.close()


async def test_a_gap_is_noticed_and_closed(kind):
    async with redis_server(kind) as server:
        a = Shop(server.url, "a@0")
        a.store("first")
        async with following(server.url, ["a@0"]) as catalog:
            await until(lambda: a.is_known(catalog))
            await asyncio.sleep(0.3)  # the follower's first wish is fulfilled
            sinks, a.bulletin.sinks = a.bulletin.sinks, []
            a.store("nobody hears of this")
            await asyncio.sleep(5 * FLUSH_S)
            a.bulletin.sinks = sinks
            assert not a.is_known(catalog)
            a.store("but of this, with a number too many")
            await until(lambda: a.is_known(catalog))
        await a.close()


async def test_clusters_on_one_server_do_not_meet(kind):
    async with redis_server(kind) as server:
        mine, theirs = Shop(server.url, "a@0"), Shop(server.url, "a@0", b"another")
        mine.store("mine")
        async with following(server.url, ["a@0"]) as catalog:
            await until(lambda: mine.is_known(catalog))
            theirs.store("theirs")
            await asyncio.sleep(0.3)
            assert mine.is_known(catalog)
        await mine.close()
        await theirs.close()


async def test_what_others_wrote_is_passed_over(kind):
    async with redis_server(kind) as server:
        a = Shop(server.url, "a@0")
        async with following(server.url, ["a@0"]) as catalog:
            await until(lambda: a.is_known(catalog))
            changes = a.publisher._server.changes
            odd = msgspec.msgpack.encode(CacheBatch(0, True, (Change("odd", Tier.HOST, True, ()),)))
            for fields in (
                {"x": "y"},
                {"i": "a@0", "b": b"\xc1"},
                {"i": "a@0", "b": odd},
                {"i": b"\xff", "b": b""},
            ):
                await a.publisher._server.commands.xadd(changes, fields)
            a.store("still heard")
            await until(lambda: a.is_known(catalog))
        await a.close()


@pytest.mark.parametrize("who", ["follower", "publisher"])
async def test_a_fault_is_logged_and_the_work_goes_on(kind, who, monkeypatch, caplog):
    faults = [TypeError("a fault"), AttributeError("another")]

    def faulty(work):
        async def works_at_last(self, *words):
            if faults:
                raise faults.pop()
            await work(self, *words)

        return works_at_last

    changed, name = {
        "follower": (RedisFollower, "_load"),
        "publisher": (RedisPublisher, "_write_snapshot"),
    }[who]
    monkeypatch.setattr(changed, name, faulty(getattr(changed, name)))
    async with redis_server(kind) as server:
        a = Shop(server.url, "a@0")
        a.store("first")
        async with following(server.url, ["a@0"]) as catalog:
            await until(lambda: a.is_known(catalog))
        await a.close()
    assert not faults
    assert "TypeError: a fault" in caplog.text
    assert "AttributeError: another" in caplog.text


async def test_a_stream_trimmed_under_a_slow_reader_is_begun_anew(kind, monkeypatch):
    monkeypatch.setattr(redis_directory, "MAX_ENTRIES", 10)
    may_take, take = asyncio.Event(), RedisFollower._take
    may_take.set()

    async def take_late(self, fields):
        await may_take.wait()
        await take(self, fields)

    monkeypatch.setattr(RedisFollower, "_take", take_late)
    async with redis_server(kind) as server:
        a = Shop(server.url, "a@0", flush_s=0.001)
        async with following(server.url, ["a@0"]) as catalog:
            await until(lambda: catalog.sequence("a@0") is not None)
            await asyncio.sleep(0.3)  # the follower's first wish is fulfilled
            may_take.clear()
            forgotten = []
            forget = catalog.forget
            monkeypatch.setattr(catalog, "forget", lambda one: (forgotten.append(one), forget(one)))
            for number in range(400):
                a.store(number)
                await asyncio.sleep(0.003)
            await asyncio.sleep(0.1)
            there = await a.publisher._server.commands.xrevrange(a.publisher._server.changes)
            assert len(there) < 200, "trimmed: the reader cannot have all of it"
            assert not a.is_known(catalog)
            may_take.set()
            await until(lambda: a.is_known(catalog))
            assert forgotten, "it was noticed by the sequence"
        await a.close()


@pytest.mark.parametrize(
    "command",
    ["EVAL|return 1|0", "SCRIPT|LOAD|return 1", "CONFIG|GET|*", "CLIENT|TRACKING|ON", "KEYS|*"],
)
async def test_the_user_of_these_tests_may_do_little(kind, command):
    async with redis_server(kind) as server:
        a = Shop(server.url, "a@0")
        with pytest.raises(NoPermissionError):
            await a.publisher._server.commands.execute_command(*command.split("|"))
        with pytest.raises(NoPermissionError):
            await a.publisher._server.commands.set("of-somebody-else", b"1")
        await a.close()


async def test_it_can_be_closed_at_any_moment(kind):
    async with redis_server(kind) as server:
        for number in range(40):
            a = Shop(server.url, "a@0", flush_s=0.001)
            async with asyncio.timeout(PATIENCE_S), following(server.url, ["a@0"]):
                await asyncio.sleep(number / 2000)
                await a.close()
            assert a.publisher._task.done()
