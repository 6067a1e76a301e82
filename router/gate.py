"""Admission by what is predicted: who begins now, who waits for his turn, who is told to come back.

Work is let on to the instances only as far ahead as keeps them busy; the rest waits here, where the
tenant that was served least goes first. Around the pure judgements of ``scheduler.overload`` this
file keeps futures and counts; it knows no stage and no job.
"""

import asyncio
from collections.abc import Callable

import msgspec

from scheduler.forecast import Forecast, Outlook, Work
from scheduler.overload import Load, Standing, Verdict, behind_standing, clamp, judge
from scheduler.turns import INPUT_WEIGHT, OUTPUT_WEIGHT, Turns
from triptych.core.clock import Clock
from triptych.core.config_router import AdmissionConfig
from triptych.core.errors import Cancelled, DeadlineExceeded, Overloaded, TriptychError
from triptych.core.ids import RequestId, TenantId
from triptych.core.lifecycle import Stage
from triptych.core.request import Request, Slo
from triptych.core.view import ClusterView, Expected

SMALLEST = Work(tokens=1)
"""What any request takes at least: who cannot be served with this need not be read on."""


class Looked(msgspec.Struct, frozen=True):
    """What the gate looks at."""

    view: Callable[[], ClusterView]
    num_jobs: Callable[[], int]
    """Jobs in flight on all instances."""


class Pass:
    """The right to begin. ``begun`` when its jobs are counted at the instances, ``ended`` when it
    is over, in any order and any number of times."""

    def __init__(self, slo: Slo, gate: "Gate | None" = None, waiter: "_Waiter | None" = None,
                 *, is_degraded: bool = False) -> None:  # fmt: skip
        self.slo = slo
        """The bounds that it was let in with."""
        self.is_degraded = is_degraded
        self.expected: Expected | None = None if waiter is None else waiter.expected
        self._gate = gate
        self._waiter = waiter
        self._has_begun = False

    def begun(self) -> None:
        """From here on its work is seen in the load of the instances."""
        if self._gate is not None and self._waiter is not None and not self._has_begun:
            self._has_begun = True
            self._gate.begun(self._waiter)

    def ended(self, num_output: int) -> None:
        """It drew so many tokens in all."""
        self.begun()
        gate, waiter, self._gate = self._gate, self._waiter, None
        if gate is not None and waiter is not None:
            gate.ended(waiter, num_output)


class _Waiter:
    """A request at the gate."""

    def __init__(self, request: Request, slo: Slo, work: Work, outlook: Outlook) -> None:
        self.request = request
        self.slo = slo
        self.work = work
        self.expected = outlook.expected
        self.service_s = request.num_choices * outlook.service_s
        prompt = work.tokens * INPUT_WEIGHT
        self.charge = request.num_choices * (prompt + work.num_output * OUTPUT_WEIGHT)
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.arrival_s = 0.0


class Gate:
    """One router's. All methods belong to one event loop."""

    def __init__(
        self, config: AdmissionConfig, forecast: Forecast, looked: Looked, clock: Clock
    ) -> None:
        self._config = config
        self._forecast = forecast
        self._looked = looked
        self._clock = clock
        self._turns: Turns[_Waiter] = Turns(config.weights)
        self._waiting: dict[RequestId, _Waiter] = {}
        self._standing = Standing()
        self._entering: set[_Waiter] = set()
        """Let on, and not seen in the load yet."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def check(self, tenant: TenantId, slo: Slo, arrival_s: float) -> None:
        """Raise Overloaded if not even the smallest request of this tenant with these bounds could
        be let in: before anything else of it is read."""
        ahead_s = self._ahead_s(tenant, 1.0)
        verdict = self._unpriced(slo, ahead_s)
        if verdict is None:
            if (outlook := self._outlook(SMALLEST)) is None:
                return
            load = self._load(outlook, ahead_s, arrival_s)
            verdict = judge(slo, load, self._config.slo_share, self._alone(SMALLEST))
        if not verdict.is_accepted:
            raise Overloaded(verdict.reason, retry_after_s=verdict.retry_after_s)

    async def enter(self, request: Request, arrival_s: float, work: Work) -> Pass:
        """Return when the request may begin. Raises Overloaded, at once or when its turn comes too
        late, DeadlineExceeded, and what ``cancel`` or ``close`` said."""
        if (outlook := self._outlook(work)) is None:
            return Pass(request.slo)  # the journey waits for a stage that nobody serves
        waiter = _Waiter(request, request.slo, work, outlook)
        waiter.arrival_s = arrival_s
        ahead_s = self._ahead_s(request.tenant, waiter.charge)
        load = self._load(outlook, ahead_s, arrival_s)
        verdict = judge(request.slo, load, self._config.slo_share, self._alone(work))
        if not verdict.is_accepted:
            raise Overloaded(verdict.reason, retry_after_s=verdict.retry_after_s)
        if verdict.is_degraded:
            waiter.slo = Slo()
        self._make_room(waiter, ahead_s)
        urgency = (request.priority, waiter.slo.is_bounded)
        price = (waiter.charge, waiter.service_s)
        self._turns.push(request.tenant, waiter, price, urgency)
        self._waiting[request.id] = waiter
        self.look()
        try:
            async with asyncio.timeout_at(request.deadline_s):
                await waiter.turn
        except TimeoutError:
            raise DeadlineExceeded from None
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled():
                self.ended(waiter, 0)  # it was let on in the very moment
            raise
        finally:
            self._leave(waiter)
        return Pass(waiter.slo, self, waiter, is_degraded=waiter.slo is not request.slo)

    def look(self) -> None:
        """Let on whoever has his turn, as far as there is room; turn away who waited in vain."""
        while (head := self._turns.peek()) is not None:
            outlook = self._outlook(head.work)
            if outlook is not None:
                load = self._load(outlook, self._entering_s(), head.arrival_s)
                verdict = judge(head.slo, load, 1.0, self._alone(head.work))
                if not verdict.is_accepted:
                    late = Overloaded(verdict.reason, retry_after_s=verdict.retry_after_s)
                    self._turn_away(head, late)
                    continue
                if verdict.is_degraded:
                    head.slo = Slo()
                if not load.is_idle and not self._has_room(head, outlook):
                    return
                head.expected = outlook.expected
            self._turns.pop()
            self._entering.add(head)
            if not head.turn.done():
                head.turn.set_result(None)

    def begun(self, waiter: _Waiter) -> None:
        """The jobs of ``waiter`` are counted at the instances, or never will be."""
        self._entering.discard(waiter)
        self.look()

    def ended(self, waiter: _Waiter, num_output: int) -> None:
        """Set right what was charged for its answer."""
        self._entering.discard(waiter)
        expected = waiter.request.num_choices * waiter.work.num_output
        self._turns.settle(waiter.request.tenant, OUTPUT_WEIGHT * (num_output - expected))
        self.look()

    def cancel(self, request: RequestId, tenant: TenantId, error: TriptychError) -> bool:
        """End a request of ``tenant`` that waits here; whether there was one."""
        waiter = self._waiting.get(request)
        if waiter is None or waiter.request.tenant != tenant:
            return False
        self._turn_away(waiter, error)
        return True

    def close(self) -> None:
        """Nobody is let on any more."""
        stopping = Cancelled(public="the server is stopping")
        for waiter in list(self._waiting.values()):
            self._turn_away(waiter, stopping)

    def _unpriced(self, slo: Slo, ahead_s: float) -> Verdict | None:
        """What ``judge`` says of the smallest request where that follows from the queue alone: most
        refusals of a long overload are such, and predicting costs more than all else of them."""
        if not self._standing.seen(self._clock.now(), self._turns.waiting_s):
            return None
        verdict = behind_standing(slo, ahead_s)
        if verdict is None or not (self._entering or self._looked.num_jobs()):
            return None
        view = self._looked.view()
        is_whole = view.serving(Stage.PREFILL) and view.serving(Stage.DECODE)
        return verdict if is_whole else None

    def _outlook(self, work: Work) -> Outlook | None:
        return self._forecast.outlook(self._looked.view(), work)

    def _load(self, outlook: Outlook, ahead_s: float, arrival_s: float) -> Load:
        others = self._entering or self._looked.num_jobs()
        is_idle = not others and (not self._waiting or ahead_s <= self._entering_s())
        now_s = self._clock.now()
        return Load(
            expected=self._forecast.promise(outlook.expected),
            ahead_s=ahead_s,
            drain_s=outlook.drain_s,
            elapsed_s=now_s - arrival_s,
            is_standing=self._standing.seen(now_s, self._turns.waiting_s),
            is_idle=is_idle,
        )

    def _alone(self, work: Work) -> Callable[[], Expected | None]:
        return lambda: self._forecast.alone(self._looked.view(), work)

    def _has_room(self, head: _Waiter, outlook: Outlook) -> bool:
        """Whether the instances have little enough to do that ``head`` is let on."""
        tpot_s = self._forecast.promise(outlook.expected).tpot_s
        is_slow = head.slo.tpot_s is not None and tpot_s > head.slo.tpot_s
        is_near = outlook.wait_s + self._entering_s() <= self._config.horizon_s
        return is_near and outlook.room_s <= 0.0 and not is_slow

    def _ahead_s(self, tenant: TenantId, charge: float) -> float:
        return self._entering_s() + self._turns.ahead_s(tenant, charge)

    def _entering_s(self) -> float:
        return sum(waiter.service_s for waiter in self._entering)

    def _make_room(self, waiter: _Waiter, ahead_s: float) -> None:
        """A full queue turns away the last of the tenant of which most waits, who may be the one
        that comes."""
        if len(self._waiting) < self._config.queue:
            return
        tenant = waiter.request.tenant
        longest = self._turns.longest()
        weight = self._config.weights.get(tenant, 1.0)
        own = self._turns.waiting_of(tenant) + waiter.charge / weight
        full = Overloaded("the queue is full", retry_after_s=clamp(ahead_s))
        if longest is None or longest == tenant or self._turns.waiting_of(longest) <= own:
            raise full
        self._turn_away(self._turns.last_of(longest), full)

    def _turn_away(self, waiter: _Waiter, error: TriptychError) -> None:
        self._leave(waiter)
        if not waiter.turn.done():
            waiter.turn.set_exception(error)

    def _leave(self, waiter: _Waiter) -> None:
        """It does not wait any more."""
        if self._waiting.pop(waiter.request.id, None) is not None:
            self._turns.remove(waiter.request.tenant, waiter)
