"""How long things take: seconds per token by stage and instance, seconds per byte by link.

Learned online from the timings of finished jobs (an exponentially weighted mean for each place of
the topology, so a restarted instance inherits it) and from what takers report of their links;
priors where nothing was seen. Linear in tokens and bytes, no more. Knows no queue, no policy.
"""

import math
from collections.abc import Iterable

from scheduler.predict import Speeds
from scheduler.predict import place_of as _place
from triptych.core.catalog import LinkReport, Tier
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage

WEIGHT = 0.2
"""Of the newest timing in the mean."""
FEWEST_TOKENS = 32
"""Jobs that computed fewer say more of a step's fixed cost than of a token's."""
PRIOR_S = {Stage.ENCODE: 1e-4, Stage.PREFILL: 1e-4, Stage.DECODE: 1e-2}
"""Seconds per token of a stage that was never seen: a small GPU's order of magnitude."""
PRIOR_LATENCY_S = 1e-3
PRIOR_BYTES_PER_S = 1e9
"""A link that nobody measured: 10 GbE, about."""
NEAR_LATENCY_S, NEAR_BYTES_PER_S = 1e-4, 5e9
"""The same within one machine: shared memory, about."""
TIER_BYTES_PER_S = {Tier.HOST: 5e9, Tier.DISK: 5e8}
"""Reading back what an instance itself keeps on a lower tier."""
HALF_LIFE = 32
"""Measurements, for each link that is known, until half of what made one of them seem slower than
others of its kind is doubted: it may have been its first transfer, or a bad minute, and who is
never chosen is never measured again."""


class Latencies:
    """What was seen so far. Changed by ``learn`` and ``report``; everything else is pure."""

    def __init__(self, speeds: Speeds | None = None) -> None:
        self.speeds = Speeds() if speeds is None else speeds
        """What steps take, for policies that predict."""
        self._token_s: dict[tuple[Stage, str], float] = {}
        self._links: dict[str, dict[str, tuple[LinkReport, int]]] = {}
        """By the places of taker and giver: the way in use, and the measurement that it is of."""
        self._typical: dict[str, tuple[float, float]] = {}
        """By transport: seconds and seconds per byte, in the mean of what was measured of late."""
        self._num_links = self._num_measured = 0
        self._ways: dict[str, _Ways] = {}
        self._failovers: dict[InstanceId, int] = {}
        self._asked: dict[InstanceId, dict[InstanceId, tuple[LinkReport | None, int]]] = {}
        """By taker and giver: links that were asked for since the taker's last report."""

    def learn(self, stage: Stage, instance: InstanceId, num_tokens: int, seconds: float) -> None:
        """A job computed ``num_tokens`` in ``seconds``."""
        if num_tokens < FEWEST_TOKENS or seconds <= 0.0:
            return
        place, seen = (stage, _place(instance)), seconds / num_tokens
        before = self._token_s.get(place, seen)
        self._token_s[place] = before + WEIGHT * (seen - before)

    def token_s(self, stage: Stage, instance: InstanceId) -> float:
        """Seconds per token; of an instance not seen yet, the mean of its stage."""
        known = self._token_s.get((stage, _place(instance)))
        if known is not None:
            return known
        others = [seconds for (each, _), seconds in self._token_s.items() if each is stage]
        return sum(others) / len(others) if others else PRIOR_S[stage]

    def report(self, taker: InstanceId, reports: Iterable[LinkReport]) -> None:
        """All links of a taker as it finds them. Of several ways to one giver, the one that was
        measured last is believed to be in use."""
        told = {(each.giver, each.transport): each for each in reports}
        self._failovers[taker] = sum(each.failovers for each in told.values())
        before = self._ways.get(_place(taker))
        if before is not None and _incarnation(before.taker) > _incarnation(taker):
            return
        if before is None or before.taker == taker:
            self._asked.pop(taker, None)
        else:
            self._asked.clear()  # what was told to an incarnation before is the place's
        self._num_measured += 1
        ways = self._ways[_place(taker)] = _Ways(taker, told, before, self._num_measured)
        self._num_links -= len(self._links.get(_place(taker), ()))
        links = self._links[_place(taker)] = ways.in_use()
        self._num_links += len(links)
        for link, since in links.values():
            if since == self._num_measured and link.bytes_per_s > 0.0:
                self._note(link.transport, link.latency_s, 1.0 / link.bytes_per_s)

    def forget(self, taker: InstanceId) -> None:
        """An incarnation is gone: its count of failovers ends. Speeds stay for the next one."""
        self._failovers.pop(taker, None)
        self._asked.pop(taker, None)

    def transfer_s(
        self, giver: InstanceId, taker: InstanceId, num_bytes: float, *, is_near: bool = False
    ) -> float:
        """Seconds to move ``num_bytes``; none within one instance. ``is_near``: both are on one
        machine, for a link that nobody measured. What made one slower than others of its transport
        is doubted by and by, unless it is measured again."""
        if giver == taker or num_bytes <= 0:
            return 0.0
        asked = self._asked.get(taker)
        if asked is None:
            asked = self._asked[taker] = {}
        link, since = asked.get(giver) or asked.setdefault(giver, self._link(giver, taker))
        if link is None or link.bytes_per_s <= 0.0:
            if is_near:
                return NEAR_LATENCY_S + num_bytes / NEAR_BYTES_PER_S
            return PRIOR_LATENCY_S + num_bytes / PRIOR_BYTES_PER_S
        told_s = link.latency_s + num_bytes / link.bytes_per_s
        latency_s, byte_s = self._typical.get(link.transport, (math.inf, 0.0))
        usual_s = latency_s + num_bytes * byte_s
        if told_s <= usual_s:
            return told_s
        age = (self._num_measured - since) / (HALF_LIFE * self._num_links)
        belief: float = 0.5**age
        return usual_s + belief * (told_s - usual_s)

    def _link(self, giver: InstanceId, taker: InstanceId) -> tuple[LinkReport | None, int]:
        """The way in use, and the measurement that it is of."""
        return self._links.get(_place(taker), {}).get(_place(giver), (None, 0))

    def _note(self, transport: str, latency_s: float, byte_s: float) -> None:
        """A link was measured."""
        usual_s, usual_byte_s = self._typical.get(transport, (latency_s, byte_s))
        self._typical[transport] = (
            usual_s + WEIGHT * (latency_s - usual_s),
            usual_byte_s + WEIGHT * (byte_s - usual_byte_s),
        )

    @property
    def num_failovers(self) -> int:
        """How often another transport had to be used, on all links, since their takers started."""
        return sum(self._failovers.values())


class _Ways:
    """All that one taker told in one report, and with which of all reports each way became what it
    is: a transfer changes the numbers of the way that it took, and of no other."""

    def __init__(
        self,
        taker: InstanceId,
        told: dict[tuple[InstanceId, str], LinkReport],
        before: "_Ways | None",
        number: int,
    ) -> None:
        self.taker = taker
        self._told = told
        self._measured: dict[tuple[InstanceId, str], int] = {
            way: number
            if before is None or _speed(before._told.get(way)) != _speed(report)
            else before._measured[way]
            for way, report in told.items()
        }

    def in_use(self) -> dict[str, tuple[LinkReport, int]]:
        """By place of the giver: of its newest incarnation the way measured last; of equals the one
        that broke least, because a way may be told that broke before it was ever measured. With the
        number of that report."""
        newest: dict[str, tuple[tuple[int, int, int, float], LinkReport]] = {}
        for way, report in self._told.items():
            giver, measured = report.giver, self._measured[way]
            rank = (_incarnation(giver), measured, -report.failovers, report.bytes_per_s)
            place = _place(giver)
            if place not in newest or rank > newest[place][0]:
                newest[place] = rank, report
        return {place: (report, rank[1]) for place, (rank, report) in newest.items()}


def _speed(report: LinkReport | None) -> tuple[float, float] | None:
    return None if report is None else (report.latency_s, report.bytes_per_s)


def _incarnation(instance: InstanceId) -> int:
    """``3`` of ``prefill-0@3``."""
    return int(instance.partition("@")[2] or 0)
