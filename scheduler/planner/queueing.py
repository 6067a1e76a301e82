"""How long jobs wait for servers: closed forms of queueing theory.

Poisson or bursty arrivals, general service times, one or several servers. Knows rates, moments and
seconds; no stage, no request. Exact for one server and Poisson arrivals, approximate beyond.
"""

import math

import msgspec

from scheduler.planner.demand import Moments


class Wait(msgspec.Struct, frozen=True):
    """Before service: none with probability ``1 - probability``, else exponential."""

    probability: float = 0.0
    mean_s: float = 0.0
    """Over all jobs, those that do not wait included; ``inf`` if the queue grows for ever."""

    @property
    def tail_s(self) -> float:
        """Mean of those that do wait."""
        return self.mean_s / self.probability if self.probability > 0.0 else 0.0


OVERLOADED = Wait(1.0, math.inf)


def wait(rate: float, service: Moments, num_servers: float, arrival_cv2: float = 1.0) -> Wait:
    """Wait of a queue at ``num_servers`` servers, each with ``service`` seconds a job.

    Allen and Cunneen's G/G/c (A. O. Allen, Probability, Statistics and Queueing Theory, 1990,
    section 5.3) with Sakasegawa's approximation of the M/M/c queue (Ann. Inst. Statist. Math. 29,
    1977), which admits a fractional number of servers:
    ``W = (ca2 + cs2) / 2 * rho ** (sqrt(2 (c + 1)) - 1) / (c (1 - rho)) * S``.
    With one server it is Kingman's formula, with Poisson arrivals Pollaczek and Khinchine's, which
    is exact; with constant service that is DistServe's M/D/1 (OSDI 2024, section 3.1).
    """
    if rate <= 0.0 or service.mean <= 0.0:
        return Wait()
    utilisation = rate * service.mean / num_servers
    if utilisation >= 1.0:
        return OVERLOADED
    busy = utilisation ** (math.sqrt(2.0 * (num_servers + 1.0)) - 1.0)
    spread = (arrival_cv2 + service.cv2) / 2.0
    return Wait(busy, spread * busy * service.mean / (num_servers * (1.0 - utilisation)))


def departure_cv2(utilisation: float, arrival_cv2: float, service_cv2: float, num: float) -> float:
    """Squared coefficient of variation of the gaps between departures from ``num`` servers.

    Whitt's Queueing Network Analyzer (Bell System Technical Journal 62, 1983, equation 39): what
    one stage does to the arrivals of the next. 1 stays 1 at little load.
    """
    rho2 = min(1.0, utilisation) ** 2
    through = (1.0 - rho2) * (arrival_cv2 - 1.0)
    return max(0.0, 1.0 + through + rho2 * (max(service_cv2, 0.2) - 1.0) / math.sqrt(num))


def within(first: Wait, second: Wait, slack_s: float) -> float:
    """Probability that two independent waits together take at most ``slack_s``."""
    if slack_s < 0.0 or math.isinf(first.mean_s) or math.isinf(second.mean_s):
        return 0.0
    one_s, other_s = first.tail_s, second.tail_s
    p = first.probability if one_s > 0.0 else 0.0  # so small that the mean is none
    q = second.probability if other_s > 0.0 else 0.0
    missed = 0.0
    if p > 0.0:
        missed += (1.0 - q) * p * math.exp(-slack_s / one_s)
    if q > 0.0:
        missed += (1.0 - p) * q * math.exp(-slack_s / other_s)
    if p > 0.0 and q > 0.0:
        missed += p * q * _sum_beyond(one_s, other_s, slack_s)
    return 1.0 - missed


def _sum_beyond(one_s: float, other_s: float, slack_s: float) -> float:
    """Probability that the sum of two exponentials of these means is more than ``slack_s``."""
    if abs(one_s - other_s) < 1e-6 * (one_s + other_s):
        mean_s = (one_s + other_s) / 2
        return math.exp(-slack_s / mean_s) * (1.0 + slack_s / mean_s)
    weighted = one_s * math.exp(-slack_s / one_s) - other_s * math.exp(-slack_s / other_s)
    return weighted / (one_s - other_s)


def md1_ttft_s(rate: float, service_s: float) -> float:
    """DistServe's mean time to the first token of one prefill instance: ``D + R D^2 / (2 (1 - R
    D))`` (OSDI 2024, equation 1); ``inf`` if overloaded."""
    return service_s + wait(rate, Moments(service_s, service_s**2), 1.0).mean_s


def sharded_s(pieces: tuple[float, ...], num_servers: int) -> float:
    """Seconds until the last of ``pieces`` (longest first) is done on ``num_servers`` idle servers,
    each piece given to the one that is free first (Graham's longest-processing-time rule)."""
    if len(pieces) <= num_servers:
        return pieces[0] if pieces else 0.0
    busy_s = [0.0] * num_servers
    for piece in pieces:
        first = busy_s.index(min(busy_s))
        busy_s[first] += piece
    return max(busy_s)
