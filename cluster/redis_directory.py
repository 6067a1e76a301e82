"""The directory on a Redis or Valkey server: instances publish to a stream, routers follow it.

    <prefix>:changes            stream of batches, trimmed; and of marks that a snapshot was written
    <prefix>:snapshot:<name>    all that an instance holds, by itself
    <prefix>:wanted:<name>      somebody missed something: a snapshot, please

Plain commands only: no scripts, no client-side caching. A server that is away costs misses; when it
is back, with or without its data, everybody begins anew with snapshots. Holds salted hashes and
names of instances; no endpoint, no handle. Does not know what a router decides by it.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cluster.catalog import Catalog
from triptych.core.catalog import KINDS, CacheBatch
from triptych.core.errors import ConfigError
from triptych.core.hashing import digest
from triptych.core.ids import InstanceId

try:
    import redis.asyncio as redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
except ImportError as missing:
    raise ConfigError("cluster.directory: Redis needs triptych[redis]") from missing

log = logging.getLogger(__name__)

MAX_ENTRIES = 10_000
"""Batches kept in the stream, about; who is further behind asks for snapshots."""
MAX_WAITING = 256
"""Batches that wait at an instance for the server; a snapshot takes the place of more."""
TIMEOUT_S = 2.0
READ_MS = 250
SNAPSHOT_TTL_S = 120
REFRESH_S = 30.0
"""A snapshot is written at least this often, so it outlives its time only with its instance."""
WANTED_TTL_S = 30
BACKOFF_S = 0.25

_BATCHES = msgspec.msgpack.Decoder(CacheBatch)


class _Server:
    """Connections to the server, and the names of this cluster's keys."""

    def __init__(self, url: str, secret: bytes) -> None:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=4,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self.commands: Any = redis.Redis(connection_pool=pool)
        self._prefix = f"triptych:{digest('redis directory', secret).hex()[:16]}"
        self.changes = f"{self._prefix}:changes"

    def snapshot(self, instance: InstanceId) -> str:
        return f"{self._prefix}:snapshot:{instance}"

    def wanted(self, instance: InstanceId) -> str:
        return f"{self._prefix}:wanted:{instance}"

    async def close(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self.commands.aclose()
            await self.commands.connection_pool.disconnect()


class _Loop:
    """A task that works on the server, and begins anew whenever the server fails it, or its own
    code does: a directory is a hint, and its faults are nobody's but the log's."""

    def __init__(self, url: str, secret: bytes, name: str) -> None:
        self._server = _Server(url, secret)
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self.is_connected = False
        self._is_warned = False
        self._is_closing = False

    def start(self) -> None:
        """Begin. Nothing is waited for: a server may come later."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def close(self) -> None:
        """End the task and every connection."""
        self._is_closing = True  # redis-py may swallow the cancellation
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._server.close()

    async def _run(self) -> None:
        while not self._is_closing:
            try:
                await self._work()
            except (RedisError, OSError) as error:
                if not self._is_warned:
                    log.warning("%s: the directory's server is away: %s", self._name, error)
                self._failed()
            except Exception:
                log.exception("%s: a fault; it begins anew", self._name)
                self._failed()
            await asyncio.sleep(BACKOFF_S)

    def _failed(self) -> None:
        self._is_warned, self.is_connected = True, False
        self._lost()

    def _connected(self) -> None:
        self._is_warned, self.is_connected = False, True

    async def _work(self) -> None:
        raise NotImplementedError

    def _lost(self) -> None:
        raise NotImplementedError


class RedisPublisher(_Loop):
    """What one instance tells. ``snapshot`` gives all it holds now."""

    def __init__(
        self,
        where: tuple[str, bytes],
        instance: InstanceId,
        snapshot: Callable[[], CacheBatch],
        flush_s: float,
    ) -> None:
        """``where`` is the server's URL and the cluster's secret, of which the keys' prefix is
        made; changes leave, and wishes are heard, every ``flush_s``."""
        super().__init__(*where, f"publish {instance}")
        self._instance = instance
        self._snapshot = snapshot
        self._flush_s = flush_s
        self._waiting: deque[CacheBatch] = deque()
        self._needs_snapshot = True
        self._written_s = 0.0

    def publish(self, batch: CacheBatch) -> None:
        """Tell of changes, soon."""
        self._waiting.append(batch)
        if len(self._waiting) > MAX_WAITING:
            self._lost()

    def _lost(self) -> None:
        self._waiting.clear()
        self._needs_snapshot = True

    async def _work(self) -> None:
        server, loop = self._server, asyncio.get_running_loop()
        while not self._is_closing:
            async with server.commands.pipeline(transaction=False) as pipe:
                pipe.exists(server.snapshot(self._instance))
                pipe.delete(server.wanted(self._instance))
                is_there, is_wanted = await pipe.execute()
            self._connected()
            is_old = loop.time() > self._written_s + REFRESH_S
            if self._needs_snapshot or is_wanted or is_old or not is_there:
                await self._write_snapshot()
                self._written_s = loop.time()
            elif self._waiting:
                await self._write_changes()
            await asyncio.sleep(self._flush_s)

    async def _write_snapshot(self) -> None:
        self._waiting.clear()
        self._needs_snapshot = False
        server, batch = self._server, self._snapshot()
        data = msgspec.msgpack.encode(batch)
        await server.commands.set(server.snapshot(self._instance), data, ex=SNAPSHOT_TTL_S)
        await self._add({"i": self._instance, "s": batch.sequence})

    async def _write_changes(self) -> None:
        while self._waiting:
            batch = self._waiting.popleft()
            await self._add({"i": self._instance, "b": msgspec.msgpack.encode(batch)})

    async def _add(self, fields: dict[str, Any]) -> None:
        changes = self._server.changes
        await self._server.commands.xadd(changes, fields, maxlen=MAX_ENTRIES, approximate=True)


class RedisFollower(_Loop):
    """Keeps a router's catalog in step with the server. ``members`` are the instances that live:
    what others left behind is of no interest."""

    def __init__(
        self,
        where: tuple[str, bytes],
        catalog: Catalog,
        members: Callable[[], Iterable[InstanceId]],
    ) -> None:
        """``where`` as for the publisher."""
        super().__init__(*where, "follow the directory")
        self._catalog = catalog
        self._members = members

    def _lost(self) -> None:
        self._catalog.clear()

    async def _work(self) -> None:
        server = self._server
        newest = await server.commands.xrevrange(server.changes, count=1)
        last = newest[0][0] if newest else "0-0"
        self._connected()
        while not self._is_closing:
            for instance in self._members():
                if self._catalog.sequence(instance) is None:
                    await self._load(instance)
                    await self._ask(instance)  # we passed over what it told since
            answer = await server.commands.xread({server.changes: last}, count=512, block=READ_MS)
            for _, entries in answer:
                for last, fields in entries:  # noqa: B007
                    await self._take(fields)

    async def _take(self, fields: dict[bytes, bytes]) -> None:
        """One entry of the stream. What nobody of ours wrote is passed over."""
        instance = InstanceId(fields.get(b"i", b"").decode(errors="replace"))
        if instance not in self._members():
            return
        if (data := fields.get(b"b")) is None:
            await self._load(instance)
        elif (batch := _decode(data)) is None or not self._catalog.apply(instance, batch):
            self._catalog.forget(instance)
            await self._ask(instance)

    async def _load(self, instance: InstanceId) -> None:
        """Take in an instance's snapshot, if there is one that is new."""
        data = await self._server.commands.get(self._server.snapshot(instance))
        batch = None if data is None else _decode(data)
        if batch is not None and batch.sequence >= (self._catalog.sequence(instance) or 0):
            self._catalog.apply(instance, batch)

    async def _ask(self, instance: InstanceId) -> None:
        """Wish for a snapshot; a mark in the stream says when it is there."""
        await self._server.commands.set(self._server.wanted(instance), b"1", ex=WANTED_TTL_S)


def _decode(data: bytes) -> CacheBatch | None:
    try:
        batch = _BATCHES.decode(data)
    except (msgspec.MsgspecError, ValueError):
        batch = None
    if batch is None or not all(change.kind in KINDS for change in batch.changes):
        log.warning("the directory's server holds an entry that nobody of ours wrote")
        return None
    return batch
