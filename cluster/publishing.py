"""Wires what instances tell of their caches to those who want to hear it: on sessions, or by Redis.

Knows the two kinds of directory by the setting ``cluster.directory``. Links are always told on
sessions: a router needs only those of the instances that it knows.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from cluster.bulletin import Bulletin
from cluster.catalog import Catalog
from cluster.host import InstanceSpec
from triptych.core.catalog import CacheBatch, LinkReport
from triptych.core.config import Config
from triptych.core.ids import InstanceId
from triptych.wire.sessions import News, Sessions

EMBEDDED = "embedded"

Links = Callable[[], tuple[LinkReport, ...]]


class _Told(News):
    """What sessions of this instance tell."""

    def __init__(self, snapshot: Callable[[], CacheBatch] | None, links: Links) -> None:
        self._snapshot = snapshot
        self._links = links

    def snapshot(self) -> CacheBatch | None:
        return None if self._snapshot is None else self._snapshot()

    def links(self) -> tuple[LinkReport, ...]:
        return self._links()


class Publishing:
    """The way of one instance's batches. ``close`` ends it."""

    def __init__(
        self, spec: InstanceSpec, bulletin: Bulletin, sessions: Sessions, links: Links
    ) -> None:
        cluster = spec.config.cluster
        self._bulletin = bulletin
        self._publisher = None
        if cluster.directory == EMBEDDED:
            bulletin.sinks.append(sessions.publish)
            sessions.news = _Told(bulletin.snapshot, links)
            return
        from cluster.redis_directory import RedisPublisher  # optional: its library may be missing

        sessions.news = _Told(None, links)
        where = (cluster.directory, spec.secret)
        self._publisher = RedisPublisher(
            where, spec.id, bulletin.snapshot, cluster.directory_flush_s
        )
        bulletin.sinks.append(self._publisher.publish)
        self._publisher.start()

    async def close(self) -> None:
        """Tell nobody anything any more."""
        self._bulletin.close()
        if self._publisher is not None:
            await self._publisher.close()


class Follower(Protocol):
    """Fills a catalog from a directory elsewhere."""

    async def close(self) -> None:
        """End it."""
        ...


def follow(
    config: Config, secret: bytes, catalog: Catalog, members: Callable[[], Iterable[InstanceId]]
) -> Follower | None:
    """Keep ``catalog`` in step with the directory that the configuration names, for instances that
    are ``members``; None where sessions tell all. Raises ConfigError if its library is missing."""
    if config.cluster.directory == EMBEDDED:
        return None
    from cluster.redis_directory import RedisFollower  # optional: its library may be missing

    follower = RedisFollower((config.cluster.directory, secret), catalog, members)
    follower.start()
    return follower
