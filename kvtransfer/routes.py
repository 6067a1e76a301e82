"""Which way to a giver: by the seconds that a transfer should take on each, as far as measured.

Every transfer measures the way that it took: the round trip of its ack, and bytes by seconds of
chunks that are large enough. A way that broke, or could not be opened, is avoided for a while.
Knows names and numbers; what a way is, is ``transports``.
"""

import threading
from collections.abc import Sequence

import msgspec

from kvtransfer.transports.transport import Transport
from triptych.core.catalog import LinkReport
from triptych.core.clock import Clock
from triptych.core.handoff import TransferRef
from triptych.core.ids import InstanceId, succeeds

PRIORS = {
    "inproc": (5e-5, 8e9),
    "shm": (1e-4, 8e9),
    "nixl": (2e-4, 8e9),
    "nccl": (5e-4, 4e9),
    "tcp": (2e-4, 1e9),
}
"""Seconds and bytes per second of a way that was never measured."""
PRIOR = (5e-4, 1e9)
"""Of a way that is not among them."""
MEMORY = ("inproc", "shm")
"""Ways through the memory of one host: while one of them works, no other is tried that never was.
To load a way and to meet by it takes up to a second, which every fetch of that moment waits for;
and what slows copies of memory slows the others as well."""
MIN_PACE = 1 / 8
"""A way that is slower than this share of what was expected of it is slow by itself."""
SHARE = 0.2
"""Of a new measurement in the running mean."""
SAMPLE_BYTES = 262_144
"""Chunks below this say nothing about bandwidth."""
MESSAGE_S = 0.006
"""A message takes a link for about so long: what is more urgent waits no longer for its turn, and
what a message costs besides its bytes (about 0.2 ms) matters little."""
AVOID_S = 30.0
"""How long a broken way is the last resort."""


class Measured(msgspec.Struct, frozen=True):
    """What one transfer took."""

    round_trip_s: float
    num_bytes: int = 0
    """Of chunks large enough to tell."""
    seconds: float = 0.0


class _Route:
    """One way to one giver."""

    def __init__(self, way: str) -> None:
        self.latency_s, self.bytes_per_s = PRIORS.get(way, PRIOR)
        self.has_latency = self.has_bandwidth = False
        self.num_broken = 0
        self.avoid_until_s = 0.0

    def speed(self, now_s: float) -> float:
        """Bytes per second as measured; 0 if they were not, or while the way is avoided."""
        return self.bytes_per_s if self.has_bandwidth and now_s >= self.avoid_until_s else 0.0


class Routes:
    """What the ways to each giver are worth. Any thread may call."""

    def __init__(self, transports: Sequence[Transport], name: str, clock: Clock) -> None:
        self._transports = transports
        self._name = name
        """The configured transport; ``auto`` for any."""
        self._clock = clock
        self._lock = threading.Lock()
        self._routes: dict[tuple[InstanceId, str], _Route] = {}

    def rank(self, ref: TransferRef, num_bytes: int) -> list[Transport]:
        """The ways to fetch ``num_bytes`` of ``ref``, the quickest first; equals in the order of
        nearness. The same process needs no permission."""
        name, now_s = self._name, self._clock.now()
        ways = [
            way
            for way in self._transports
            if name in ("auto", way.name) or way.name == "inproc"
            if way.can_reach(ref)
        ]

        def cost(way: Transport) -> tuple[bool, bool, float]:
            route = self._route(ref.instance, way.name)
            is_trial = is_near and way.name not in MEMORY and not route.has_latency
            latency_s = route.latency_s if route.has_latency else route.latency_s * load
            rate = route.bytes_per_s if route.has_bandwidth else route.bytes_per_s * pace
            return now_s < route.avoid_until_s, is_trial, latency_s + num_bytes / rate

        with self._lock:
            near = (self._route(ref.instance, way.name) for way in ways if way.name in MEMORY)
            is_near = any(now_s >= route.avoid_until_s for route in near)
            load, pace = self._load(ref.instance), self._pace(ref.instance)
            return sorted(ways, key=cost)

    def message_bytes(self, giver: InstanceId, way: str, least: int, most: int) -> int:
        """How large messages from ``giver`` should be; ``least`` until the way was measured."""
        with self._lock:
            route = self._route(giver, way)
            fitting = round(route.bytes_per_s * MESSAGE_S) if route.has_bandwidth else least
            return max(least, min(fitting, most))

    def learn(self, giver: InstanceId, way: str, measured: Measured) -> None:
        """A transfer was made."""
        with self._lock:
            route = self._route(giver, way)
            share = SHARE if route.has_latency else 1.0
            route.latency_s += share * (measured.round_trip_s - route.latency_s)
            route.has_latency = True
            if measured.seconds > 0:
                share = SHARE if route.has_bandwidth else 1.0
                rate = measured.num_bytes / measured.seconds
                route.bytes_per_s += share * (rate - route.bytes_per_s)
                route.has_bandwidth = True

    def broke(self, giver: InstanceId, way: str) -> None:
        """A way could not be opened, or broke; another is taken in its place."""
        with self._lock:
            route = self._route(giver, way)
            route.num_broken += 1
            route.avoid_until_s = self._clock.now() + AVOID_S

    def reports(self) -> list[LinkReport]:
        """Every way that was measured or broke; with a speed only what would be taken at it."""
        with self._lock:
            now_s = self._clock.now()
            return [
                LinkReport(giver, way, route.latency_s, route.speed(now_s), route.num_broken)
                for (giver, way), route in sorted(self._routes.items())
                if route.has_latency or route.num_broken
            ]

    def succeed(self, giver: InstanceId) -> None:
        """An instance has answered: earlier incarnations of its place are gone for good."""
        with self._lock:
            for key in [key for key in self._routes if succeeds(giver, key[0])]:
                del self._routes[key]

    def _load(self, giver: InstanceId) -> float:
        """By how much the round trips to a giver are slower than their priors. All ways hold the
        same conversation on sockets: what slows one slows what was never measured as well, and a
        busy giver must not be asked by every way in turn."""
        return max(
            (
                max(1.0, route.latency_s / PRIORS.get(name, PRIOR)[0])
                for (peer, name), route in self._routes.items()
                if peer == giver and route.has_latency
            ),
            default=1.0,
        )

    def _pace(self, giver: InstanceId) -> float:
        """What of its prior bandwidth a way to a giver has that was never measured: as much as the
        others have of theirs. Digests and slow memory bound all of them, and to try a way costs up
        to a second; but one that is slow by far is no measure."""
        ratios = [
            route.bytes_per_s / PRIORS.get(name, PRIOR)[1]
            for (peer, name), route in self._routes.items()
            if peer == giver and route.has_bandwidth
        ]
        return min(1.0, max([MIN_PACE, *ratios])) if ratios else 1.0

    def _route(self, giver: InstanceId, way: str) -> _Route:
        return self._routes.setdefault((giver, way), _Route(way))
