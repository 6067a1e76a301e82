"""The gate in virtual time, before instances that are nothing but queues: ten times too much."""

import asyncio
import heapq
import itertools
import random
from collections import Counter

import msgspec
import pytest

from router.gate import SMALLEST, Gate, Looked
from scheduler.forecast import Forecast, Terms, Work
from scheduler.latency import Latencies
from scheduler.overload import judge
from scheduler.predict import Speeds
from tests.scheduler.test_placement import cluster, instance
from tests.scheduler.test_slo import Machine
from triptych.core.clock import ManualClock
from triptych.core.config_router import AdmissionConfig
from triptych.core.errors import Cancelled, Overloaded
from triptych.core.ids import RequestId, TenantId
from triptych.core.request import Request, Sampling, Slo, StopRule
from triptych.core.view import Pending

SLO = Slo("custom", 2.0, 0.05)
PREFILL_S = 0.11
"""Of a prompt of 1,000 tokens on the machine: two steps."""


class World:
    """Two prefill instances that serve in order of arrival, and a decode instance without end."""

    def __init__(self, **config) -> None:
        self.clock = ManualClock()
        self.queues = {"P-0": [], "P-1": []}
        self.events, self.order = [], itertools.count()
        self.gate = Gate(
            AdmissionConfig("slo", **config),
            Forecast(Latencies(Speeds(Machine(), Machine())), Terms()),
            Looked(view=self.view, num_jobs=lambda: sum(map(len, self.queues.values()))),
            self.clock,
        )
        self.ttft, self.refused, self.tasks = [], [], []
        self.served = Counter()

    def view(self):
        found = [
            msgspec.structs.replace(
                instance(name),
                pending=Pending(
                    prompts=len(queue),
                    prompt_tokens=1000 * len(queue),
                    prompt_pairs=500_500 * len(queue),
                ),
            )
            for name, queue in self.queues.items()
        ]
        about = instance("D-0")
        about = msgspec.structs.replace(
            about, description=msgspec.structs.replace(about.description, num_kv_blocks=10**6)
        )
        return cluster(*found, about)

    def request(self, number, tenant="t", slo=SLO):
        return Request(
            RequestId(f"r{number}"), TenantId(tenant), (), (), Sampling(), StopRule(20), slo,
            asyncio.get_running_loop().time() + 1e6,
        )  # fmt: skip

    async def ask(self, request):
        arrival_s = self.clock.now()
        try:
            self.gate.check(request.tenant, request.slo, arrival_s)
            work = Work(tokens=1000, num_output=10)
            right = await self.gate.enter(request, arrival_s, work)
        except Overloaded as error:
            self.refused.append((self.clock.now() - arrival_s, error.retry_after_s))
            return
        name = min(self.queues, key=lambda each: len(self.queues[each]))
        queue = self.queues[name]
        begins_s = max([self.clock.now(), *(end for end, *_ in queue)])
        entry = (begins_s + PREFILL_S, request.tenant, arrival_s, right)
        queue.append(entry)
        right.begun()
        heapq.heappush(self.events, (entry[0], next(self.order), name, entry))

    async def until(self, time_s):
        """Work off what ends up to then."""
        while self.events and self.events[0][0] <= time_s:
            end_s, _, name, entry = heapq.heappop(self.events)
            self.clock.advance(end_s - self.clock.now())
            self.queues[name].remove(entry)
            self.ttft.append(end_s - entry[2])
            self.served[entry[1]] += 1
            entry[3].ended(10)
            await settle()
        if time_s > self.clock.now():
            self.clock.advance(time_s - self.clock.now())

    async def offer(self, rate, seconds, tenants=("t",), seed=0):
        """Poisson arrivals, tenants in proportion to how often they are named."""
        rng, number = random.Random(seed), itertools.count()
        end_s = self.clock.now() + seconds
        at_s = self.clock.now()
        while (at_s := at_s + rng.expovariate(rate)) < end_s:
            await self.until(at_s)
            request = self.request(next(number), rng.choice(tenants))
            self.tasks.append(asyncio.create_task(self.ask(request)))
            await settle()
        await self.until(end_s + 100.0)
        await asyncio.gather(*self.tasks)
        await self.until(end_s + 200.0)


async def settle():
    for _ in range(4):
        await asyncio.sleep(0)


CAPACITY = 2 / PREFILL_S


async def test_ten_times_too_much_keeps_goodput_and_every_promise() -> None:
    seconds = 30.0
    peak, flooded = World(), World()
    await peak.offer(0.9 * CAPACITY, seconds)
    await flooded.offer(10 * CAPACITY, seconds)
    good = {
        name: sum(ttft <= SLO.ttft_s for ttft in world.ttft) / seconds
        for name, world in [("peak", peak), ("flooded", flooded)]
    }
    assert good["flooded"] >= 0.95 * good["peak"]
    assert max(flooded.ttft) <= SLO.ttft_s, "whoever was let in had it in time"
    assert max(waited for waited, _ in flooded.refused) <= SLO.ttft_s
    early = sum(waited == 0.0 for waited, _ in flooded.refused)
    assert early >= 0.95 * len(flooded.refused), "refusals are said at once"
    assert flooded.gate.num_waiting == 0


async def test_nobody_is_refused_where_there_is_room() -> None:
    world = World()
    await world.offer(0.5 * CAPACITY, 30.0)
    assert world.refused == []


async def test_who_comes_back_when_told_is_let_in() -> None:
    world = World()
    for number in range(60):
        world.tasks.append(asyncio.create_task(world.ask(world.request(number))))
        await settle()
    retry_s = max(seconds for _, seconds in world.refused)
    assert retry_s <= 3.0
    await world.until(retry_s)
    num_refused = len(world.refused)
    again = asyncio.create_task(world.ask(world.request("again")))
    await settle()
    await world.until(retry_s + 100.0)
    await again
    assert len(world.refused) == num_refused


async def test_a_flood_of_one_tenant_does_not_drown_another() -> None:
    """The light tenant asks for a quarter of the capacity and gets it, the heavy one for ten."""
    world, seconds = World(queue=40), 30.0
    tenants = ("heavy",) * 39 + ("light",)
    await world.offer(10.25 * CAPACITY, seconds, tenants)
    offered = 10.25 * CAPACITY * seconds / 40
    assert world.served["light"] >= 0.85 * offered
    assert world.served["heavy"] >= 0.6 * CAPACITY * seconds
    assert max(world.ttft) <= SLO.ttft_s


async def test_weights_share_what_there_is() -> None:
    world = World(weights={"gold": 3.0})
    await world.offer(10 * CAPACITY, 30.0, ("gold", "iron"))
    assert world.served["gold"] / world.served["iron"] == pytest.approx(3.0, rel=0.25)


async def test_a_full_queue_turns_away_the_last_of_who_waits_most() -> None:
    world = World(queue=3, horizon_s=1e-6)
    free = Slo()
    tasks = {
        name: asyncio.create_task(world.ask(world.request(name, tenant, free)))
        for name, tenant in [("1", "a"), ("2", "a"), ("3", "a"), ("4", "a"), ("5", "a")]
    }
    await settle()
    assert world.gate.num_waiting == 3
    tasks["6"] = asyncio.create_task(world.ask(world.request("6", "b", free)))
    await settle()
    assert tasks["5"].done()
    assert len(world.refused) == 1
    assert world.gate.num_waiting == 3
    tasks["7"] = asyncio.create_task(world.ask(world.request("7", "a", free)))
    await settle()
    assert tasks["7"].done(), "and not the one that has least"
    await world.until(100.0)
    await asyncio.gather(*tasks.values())
    assert world.served == {"a": 4, "b": 1}


async def test_who_leaves_the_queue_is_forgotten_and_a_stop_ends_the_rest() -> None:
    world = World(horizon_s=1e-6)
    tasks = [
        asyncio.create_task(world.ask(world.request(str(number), slo=Slo()))) for number in range(6)
    ]
    await settle()
    assert world.gate.num_waiting == 4
    tasks[5].cancel()
    await settle()
    assert world.gate.num_waiting == 3
    assert not world.gate.cancel(RequestId("r4"), TenantId("other"), Cancelled())
    assert world.gate.cancel(RequestId("r4"), TenantId("t"), Cancelled())
    world.gate.close()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None)] * 2 + [Cancelled] * 3 + [
        asyncio.CancelledError
    ]
    await world.until(100.0)
    assert world.gate.num_waiting == 0
    assert not world.gate._entering


def said(gate, tenant, slo, arrival_s):
    """What ``check`` says: None, or when to come back and why."""
    try:
        gate.check(tenant, slo, arrival_s)
    except Overloaded as error:
        return error.retry_after_s, str(error)
    return None


async def test_what_is_said_without_prices_is_what_prices_say() -> None:
    """All along an overload, for tenants that wait and one that does not, lax and strict, also for
    who would rather be served late: and the queue stands for some of it."""
    world, rng, number, quick = World(), random.Random(7), itertools.count(), 0
    bounds = [SLO, Slo(), Slo("strict", 0.2, 0.01), Slo("custom", 0.2, 0.01, may_degrade=True)]
    at_s = world.clock.now()
    for _ in range(400):
        at_s += rng.expovariate(10 * CAPACITY)
        await world.until(at_s)
        now_s, gate = world.clock.now(), world.gate
        for tenant in (TenantId("heavy"), TenantId("light"), TenantId("absent")):
            for slo in bounds:
                outlook = gate._outlook(SMALLEST)
                load = gate._load(outlook, gate._ahead_s(tenant, 1.0), now_s)
                verdict = judge(slo, load, gate._config.slo_share, gate._alone(SMALLEST))
                whole = (verdict.retry_after_s, verdict.reason)
                assert said(gate, tenant, slo, now_s) == (None if verdict.is_accepted else whole)
                quick += gate._unpriced(slo, gate._ahead_s(tenant, 1.0)) is not None
        tenant = "light" if rng.random() < 0.02 else "heavy"
        request = world.request(next(number), tenant, rng.choice([SLO, Slo()]))
        world.tasks.append(asyncio.create_task(world.ask(request)))
        await settle()
    assert quick > 100, "a queue stood"
    await world.until(at_s + 1000.0)
    await asyncio.gather(*world.tasks)


async def test_a_standing_queue_keeps_nobody_who_waits_for_a_stage() -> None:
    """Without a decode instance nobody is refused: its replacement is waited for."""
    world = World()
    for number in range(400):
        await world.until(0.01 * number)
        world.tasks.append(asyncio.create_task(world.ask(world.request(number, slo=Slo()))))
        await settle()
    now_s, tenant = world.clock.now(), TenantId("t")
    assert said(world.gate, tenant, Slo(), now_s) is not None
    whole = world.view
    world.gate._looked = msgspec.structs.replace(
        world.gate._looked, view=lambda: cluster(*whole().instances[:2])
    )
    assert said(world.gate, tenant, Slo(), now_s) is None
    world.gate.close()
    await asyncio.gather(*world.tasks, return_exceptions=True)
