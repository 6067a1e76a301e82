"""Whether a request can still be promised what it asks: accept, degrade or refuse.

Early refusal from predicted latencies over all three stages and what waits before them; what is
accepted and cannot start yet waits for its turn. Monotone: what is accepted under a load is
accepted under any smaller one, and a laxer bound is never refused where a stricter one is
accepted. Pure.
"""

import math
from collections.abc import Callable

import msgspec

from triptych.core.request import Slo
from triptych.core.view import Expected

RETRY_S = (1.0, 60.0)
"""Least and most seconds after which a refused client is asked to come back."""
STANDING_S, INTERVAL_S = 0.5, 2.0
"""A queue that is longer than the one for all of the other stands: it absorbs no burst."""


class Load(msgspec.Struct, frozen=True):
    """What a request would find. More load is: no less of any number, and not idle."""

    expected: Expected
    """Of the instances as they are now, as soon as the request is let on to them."""
    ahead_s: float = 0.0
    """Seconds of waiting for its turn before that."""
    drain_s: float = 0.0
    """Until the sequences that decode now have ended."""
    elapsed_s: float = 0.0
    """Since it arrived."""
    is_standing: bool = False
    """Whether what waits has been long for a while; see ``Standing``."""
    is_idle: bool = False
    """Whether no request is being served or waits at all."""


class Standing:
    """Tells a queue that stands from one that a burst has left, after CoDel (Nichols and Jacobson,
    CACM 2012): it was long throughout an interval; until it was short throughout one.

    As long as a standing queue is, so much of their bounds everybody loses, for nothing: it fills
    with those whose bounds are the loosest, which are the largest requests.
    """

    def __init__(self) -> None:
        self._is_standing = False
        self._agreed_s: float | None = None
        """When its length last fitted what is thought of it."""

    def seen(self, now_s: float, waiting_s: float) -> bool:
        """Whether it stands, now that so many seconds of work wait. Times never decrease."""
        is_long = waiting_s > STANDING_S
        if is_long == self._is_standing or self._agreed_s is None:
            self._agreed_s = now_s
        elif now_s - self._agreed_s >= INTERVAL_S:
            self._is_standing, self._agreed_s = is_long, now_s
        return self._is_standing


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a request."""

    is_accepted: bool
    is_degraded: bool = False
    """Accepted, but without the bounds that it named."""
    retry_after_s: float = 0.0
    """Of one that is refused: when so much will have drained as it is too late by; the most that a
    client may be told where its bounds could not be kept even alone."""
    reason: str = ""


def judge(
    slo: Slo, load: Load, share: float, alone: Callable[[], Expected | None]
) -> Verdict:  # fmt: skip
    """The verdict on a request with the bounds of ``slo``, of which predictions may use ``share``
    (0 < share <= 1). ``alone``: what instances without any load would do, if they are known; never
    more than ``load.expected``. It is asked only where that exceeds a bound.

    Where tokens would come too slowly, it may wait until enough sequences have ended, if the bound
    on its first token allows. Behind a queue that stands nobody is let in, however loose the
    bounds: so it stays short, and what is served is as mixed as what is asked. Nobody is kept from
    an idle cluster: that harms nobody, and of one that refused everybody nothing could be learnt.
    """
    if load.is_idle:
        return Verdict(is_accepted=True)
    if load.is_standing and (verdict := behind_standing(slo, load.ahead_s)) is not None:
        return verdict
    ttft_s = math.inf if slo.ttft_s is None else share * slo.ttft_s
    tpot_s = math.inf if slo.tpot_s is None else share * slo.tpot_s
    slow = 0.0 if load.expected.tpot_s <= tpot_s else 1.0 - tpot_s / load.expected.tpot_s
    first_s = load.elapsed_s + load.ahead_s + load.expected.ttft_s + slow * load.drain_s
    if first_s <= ttft_s and not slow:
        return Verdict(is_accepted=True)
    best = alone()
    if best is not None and (best.tpot_s > tpot_s or best.ttft_s > ttft_s):
        return _refused(slo, RETRY_S[1], "its bounds could not be kept even by idle instances")
    if first_s > ttft_s:
        late_s = first_s - ttft_s
        return _refused(slo, late_s, f"the first token is predicted {late_s:.2f} s too late")
    return Verdict(is_accepted=True)


def behind_standing(slo: Slo, ahead_s: float) -> Verdict | None:
    """The verdict where a queue stands and somebody is served, if it needs no prediction."""
    if ahead_s <= STANDING_S:
        return None
    return _refused(slo, ahead_s - STANDING_S, "more is asked than can be served")


def _refused(slo: Slo, wait_s: float, reason: str) -> Verdict:
    if slo.may_degrade:
        return Verdict(is_accepted=True, is_degraded=True, reason=reason)
    return Verdict(is_accepted=False, retry_after_s=clamp(wait_s), reason=reason)


def clamp(seconds: float) -> float:
    """A time to come back, within what a client may be told."""
    return min(max(seconds, RETRY_S[0]), RETRY_S[1])
