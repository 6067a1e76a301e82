"""Placement by what a request was promised: of the routes that keep it, the one that costs all
requests together the least time; if none does, the least late one.

The cost is the request's own finish plus what it adds to those beside it: prefill in the steps of
others' decodes, one more sequence in theirs. So a cached prefix, a picture encoded before, a short
queue, a near link and an append on the very instance that decodes (PPD, arXiv 2603.13358, its
weights both one) are one sum of seconds. Pure; knows no address.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from heapq import nsmallest
from operator import attrgetter

import msgspec

from scheduler.forecast import Forecast, Queue, Work
from scheduler.latency import TIER_BYTES_PER_S
from scheduler.placement import ANYTHING, NOTHING, Ask, pairs_of
from triptych.core.catalog import Tier
from triptych.core.errors import Unavailable
from triptych.core.ids import ContentHash, InstanceId
from triptych.core.layout import Layout
from triptych.core.request import Item, Prompt
from triptych.core.view import ClusterView, Coverage, Expected, Prefix, Route

WIDTH = 8
"""Instances of each stage that are looked at in pairs: those best by themselves, and for each
prefill instance the best on its machine. With no more than that the choice is exact."""


class _Plan(msgspec.Struct, frozen=True):
    """What one prefill instance would do for a prompt."""

    queue: Queue
    first_s: float
    """Until the first token."""
    harm_s: float
    """What its chunks and pictures add to the decodes beside them, over all of those."""
    encode: tuple[InstanceId | None, ...]
    cached: int
    """Leading tokens that it does not compute."""
    prefix: Prefix | None


class _Seat(msgspec.Struct, frozen=True):
    """What one decode instance would do for a sequence."""

    queue: Queue
    gap_s: float
    wait_s: float
    """For a place and blocks."""
    harm_s: float


class SloAware:
    """See the module."""

    def __init__(self, forecast: Forecast) -> None:
        self.forecast = forecast

    def choose(
        self,
        view: ClusterView,
        prompt: Prompt,
        avoid: frozenset[InstanceId] = frozenset(),
        coverage: Coverage = NOTHING,
        ask: Ask = ANYTHING,
    ) -> Route:
        """See ``Placement``."""
        found = _Choice(self.forecast, prompt, avoid, coverage, ask).best(view)
        if found is None:
            pairs_of(view, prompt, avoid)  # says which stage is missing
            raise Unavailable("prefill: no ready instance")
        return found


class _Choice:
    """One prompt, and the cluster at one moment."""

    def __init__(
        self,
        forecast: Forecast,
        prompt: Prompt,
        avoid: frozenset[InstanceId],
        coverage: Coverage,
        ask: Ask,
    ) -> None:
        self._forecast = forecast
        self._latencies = forecast.latencies
        self._prompt = prompt
        self._avoid = avoid
        self._coverage = coverage
        self._ask = ask
        self._encoders: dict[object, Sequence[Queue]] = {}
        """By what they must have in common with the taker; the most useful ones."""
        self._lenders: list[Queue] = []

    def best(self, view: ClusterView) -> Route | None:
        """The route, or None if there is none."""
        queues = self._forecast.look(view)
        decodes = [queue for queue in queues if queue.can_decode]
        prefills = [queue for queue in queues if queue.can_prefill]
        if self._prompt.items:
            self._find_encoders([queue for queue in queues if queue.can_encode])
            prefills = [queue for queue in prefills if queue.embedding in self._encoders]
        names = self._coverage.held
        if names:
            self._lenders = [
                queue
                for queue in queues
                if queue.name in names and queue.name not in self._avoid and queue.kv
                and self._coverage.of(queue.name).kv_tokens[0]  # what lies lower is not lent
            ]  # fmt: skip
        plans = [self._plan(queue) for queue in self._shortest(prefills)]
        seats = _Seats(self, decodes, {plan.queue.machine for plan in plans})
        routes = [self._route(plan, seat) for plan in plans for seat in seats.of(plan.queue)]
        routes += [
            self._route(plan, seats.seat(plan.queue)) for plan in self._appends(decodes)
        ]  # fmt: skip
        return min(routes, key=lambda each: each[0])[1] if routes else None

    def seat(self, queue: Queue) -> _Seat:
        """What decoding at ``queue`` is like."""
        out = self._ask.num_output
        tokens = len(self._prompt) + out // 2
        gap_s = queue.gap_s(tokens)
        added_s = max(0.0, gap_s - queue.step_s)
        room_s = queue.room_s(len(self._prompt) + self._ask.most_output, gap_s)
        return _Seat(queue, gap_s, room_s, queue.decodes * added_s * out)

    def is_avoided(self, queue: Queue) -> bool:
        """Whether an instance is one to take only where there is no other."""
        return queue.name in self._avoid

    def transfer_s(self, giver: Queue, taker: Queue, num_bytes: float) -> float:
        """Seconds on the link of a pair."""
        is_near = giver.machine == taker.machine != ""
        return self._latencies.transfer_s(giver.name, taker.name, num_bytes, is_near=is_near)

    def _shortest(self, queues: Sequence[Queue]) -> Iterable[Queue]:
        """Of many prefill instances those that would be done first, by themselves."""
        if len(queues) <= WIDTH:
            return queues
        usable = self.usable(queues)
        length, held = len(self._prompt), self._coverage.held
        found = nsmallest(WIDTH, usable, key=lambda queue: queue.busy_s + length * queue.token_s)
        if not held:
            return found
        having = [queue for queue in usable if queue.name in held]
        return dict.fromkeys((*found, *nsmallest(WIDTH, having, key=attrgetter("busy_s"))))

    def usable(self, queues: Sequence[Queue]) -> Sequence[Queue]:
        """Without those to avoid, where there are others."""
        if not self._avoid:
            return queues
        return [queue for queue in queues if queue.name not in self._avoid] or queues

    def _plan(self, queue: Queue) -> _Plan:
        """The soonest way to the first token at ``queue``: by its own caches, or by a longer prefix
        that another instance lends."""
        size = _layout(queue).block_size
        most = (len(self._prompt) - 1) // size * size  # the last token is always computed
        own = min(self._coverage.of(queue.name).kv_tokens[-1], most)
        begin_s = queue.busy_s + self._read_s(queue, most)
        best = self._with(queue, own, begin_s, None)
        for lender in self._lenders:
            step = math.lcm(size, _layout(lender).block_size)  # full blocks of both
            lent = min(self._coverage.of(lender.name).kv_tokens[0], most) // step * step
            if lent > own and lender is not queue and lender.kv == queue.kv:
                fetch_s = self.transfer_s(lender, queue, (lent - own) * queue.token_bytes)
                prefix = Prefix(lender.name, lent)
                plan = self._with(queue, lent, begin_s + fetch_s, prefix)
                best = min(best, plan, key=lambda each: each.first_s)
        return best

    def _with(
        self, queue: Queue, cached: int, begin_s: float, prefix: Prefix | None
    ) -> _Plan:  # fmt: skip
        """The plan in which the KV of ``cached`` leading tokens is not computed."""
        there = self._coverage.of(queue.name).items
        items = [each for each in self._prompt.items if each.end > cached and each.key not in there]
        length = len(self._prompt)
        work = Work(tokens=length, tail=length - items[-1].offset if items else 0)
        compute_s = queue.compute_s(cached, length - cached)
        needed = {each.key for each in items}
        plans = []
        for encoders in self._options(queue) if items else [()]:
            chosen, ready_s, own_s = self._encode(queue, items, encoders)
            first_s = self._forecast.first_s(queue, begin_s + own_s, ready_s, cached, work)
            encode = tuple(
                chosen[each.key] if each.key in needed and each.end > cached else None
                for each in self._prompt.items
            )
            harm_s = queue.decodes * (own_s + compute_s)
            plans.append(_Plan(queue, first_s, harm_s, encode, cached, prefix))
        return min(plans, key=lambda plan: plan.first_s)

    def _encode(
        self, queue: Queue, items: Sequence[Item], encoders: Sequence[Queue]
    ) -> tuple[dict[ContentHash, InstanceId], float, float]:
        """One of ``encoders`` for each distinct picture, one picture after the other where it is
        done soonest; when the last is at ``queue``; and how long ``queue`` itself encodes."""
        busy_s = {each.name: each.busy_s for each in encoders}
        chosen: dict[ContentHash, InstanceId] = {}
        ready_s = own_s = 0.0
        for item in items:
            if item.key in chosen:
                continue
            best: tuple[float, float, Queue] | None = None
            for each in encoders:
                work_s = 0.0
                if item.key not in self._coverage.of(each.name).items:
                    work_s = each.picture_s(item.num_tokens)
                move_s = self.transfer_s(each, queue, item.num_tokens * each.picture_bytes)
                done_s = busy_s[each.name] + work_s + move_s
                if best is None or done_s < best[0]:
                    best = done_s, work_s, each
            assert best is not None, "there is an encoder for every prefill instance looked at"
            done_s, work_s, encoder = best
            chosen[item.key] = encoder.name
            busy_s[encoder.name] += work_s
            ready_s = max(ready_s, done_s)
            own_s += work_s if encoder is queue else 0.0
        return chosen, ready_s, own_s

    def _options(self, queue: Queue) -> list[Sequence[Queue]]:
        """Sets of encoders for a prefill instance: of those that prefill as well only itself, if it
        encodes, and then with it and without it. Prompts hold room for their pictures while they
        wait for them, and encoders wait for room in the same cache: two that encoded for each other
        would wait for ever."""
        found = self._encoders[queue.embedding]
        if not queue.can_encode or (self.is_avoided(queue) and queue not in found):
            return [found]
        others = [each for each in found if not each.can_prefill]
        return [[queue, *others], others] if others else [[queue]]

    def _find_encoders(self, queues: Sequence[Queue]) -> None:
        """The idlest of each kind, and those that have encoded a picture of the prompt before;
        those to avoid only where there is no other."""
        by_kind: dict[object, list[Queue]] = {}
        for queue in queues:
            by_kind.setdefault(queue.embedding, []).append(queue)
        for kind, found in by_kind.items():
            usable = self.usable(found)
            if len(usable) > WIDTH:
                held = [queue for queue in usable if self._coverage.of(queue.name).items]
                idle = nsmallest(WIDTH, usable, key=attrgetter("busy_s"))
                usable = list(dict.fromkeys((*idle, *held[:WIDTH])))
            self._encoders[kind] = usable

    def _appends(self, decodes: Sequence[Queue]) -> Iterable[_Plan]:
        """Decode instances that hold the prompt's beginning and all its pictures', and could
        compute the rest themselves although they are there to decode."""
        pictures_end = self._prompt.items[-1].end if self._prompt.items else 0
        for name, held in self._coverage.held.items():
            own = min(held.kv_tokens[0], len(self._prompt) - 1)
            if own <= 0 or own < pictures_end:
                continue
            for queue in decodes:
                if queue.name == name and not queue.can_prefill:
                    own = own // _layout(queue).block_size * _layout(queue).block_size
                    if own > 0 and own >= pictures_end:
                        yield self._with(queue, own, queue.busy_s, None)

    def _route(self, plan: _Plan, seat: _Seat) -> tuple[tuple[object, ...], Route]:
        """A route, and what it is worth: the less, the better."""
        one, other, ask = plan.queue, seat.queue, self._ask
        hand_over_s = 0.0
        if one is not other:
            have = min(self._coverage.of(other.name).kv_tokens[0], len(self._prompt))
            num_bytes = (len(self._prompt) - have) * one.token_bytes
            hand_over_s = self.transfer_s(one, other, num_bytes)
        gaps = max(1, ask.num_output - 1)
        expected = Expected(plan.first_s, seat.gap_s + (hand_over_s + seat.wait_s) / gaps)
        promised = self._forecast.promise(expected)
        late_s = 0.0
        if ask.slo.ttft_s is not None:
            late_s += max(0.0, promised.ttft_s + ask.elapsed_s - ask.slo.ttft_s)
        if ask.slo.tpot_s is not None:
            late_s += gaps * max(0.0, promised.tpot_s - ask.slo.tpot_s)
        cost_s = plan.first_s + gaps * expected.tpot_s + plan.harm_s + seat.harm_s
        num_avoided = len({one.name, other.name, *plan.encode} & self._avoid)
        route = Route(plan.encode, one.name, other.name, plan.prefix, plan.cached, expected)
        return (num_avoided, late_s, cost_s, one.name, other.name), route

    def _read_s(self, queue: Queue, most: int) -> float:
        """Seconds to bring KV back from the instance's own lower tiers."""
        held = self._coverage.of(queue.name).kv_tokens
        device, host, disk = (min(tokens, most) for tokens in held)
        on_host, on_disk = (host - device) * queue.token_bytes, (disk - host) * queue.token_bytes
        return on_host / TIER_BYTES_PER_S[Tier.HOST] + on_disk / TIER_BYTES_PER_S[Tier.DISK]


class _Seats:
    """Decode instances for the prefill instances that are looked at, which are on ``machines``."""

    def __init__(
        self, choice: _Choice, decodes: Sequence[Queue], machines: Collection[str]
    ) -> None:  # fmt: skip
        self._choice = choice
        self._known: dict[InstanceId, _Seat] = {}
        self._by_kind: dict[object, list[Queue]] = {}
        self._by_machine: dict[object, Queue] = {}
        by_kind: dict[object, list[Queue]] = {}
        for queue in choice.usable(decodes):
            by_kind.setdefault(queue.kv, []).append(queue)
        for kind, found in by_kind.items():
            self._by_kind[kind] = found
            if len(found) > WIDTH:
                self._by_kind[kind] = nsmallest(WIDTH, found, key=attrgetter("seat_s"))
                for queue in found:
                    if queue.machine in machines:
                        place = (kind, queue.machine)
                        best = self._by_machine.get(place)
                        if best is None or queue.seat_s < best.seat_s:
                            self._by_machine[place] = queue

    def seat(self, queue: Queue) -> _Seat:
        """Of one decode instance."""
        if queue.name not in self._known:
            self._known[queue.name] = self._choice.seat(queue)
        return self._known[queue.name]

    def of(self, prefill: Queue) -> list[_Seat]:
        """Where the KV of a prefill instance can go."""
        found = list(self._by_kind.get(prefill.kv, ()))
        near = self._by_machine.get((prefill.kv, prefill.machine)) if prefill.machine else None
        found += [each for each in (near, prefill if prefill.can_decode else None) if each]
        return [self.seat(queue) for queue in dict.fromkeys(found)]


def _layout(queue: Queue) -> Layout:
    layout = queue.view.description.kv
    assert layout is not None, "language instances have one"
    return layout
