"""What the processes of one machine do around the steps: their event loops, on shared cores.

A client, a router and every instance have a thread each; what a profile says that a request, a
message or a token costs them is done there, in the order of asking. Knows no policy.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence

from bench.workload import Arrival
from scheduler.costs import Costs
from simulator.cores import Cores, Processors
from simulator.costs.overheads import Handling, Overheads
from simulator.fair import FairCores, Runner
from simulator.interpreter import Free, Held, Lock, Thread
from simulator.world import Shared, World
from triptych.core.event import Encoded, Event, EventBatch, Failed, Finished, Tokens
from triptych.core.ids import InstanceId

NICER = 0.8
"""Share of a core, beside others, of a thread that is nicer by one: Linux's weights."""


class Threads:
    """All threads of a world."""

    def __init__(self, world: World, overheads: Overheads, speeds: Sequence[float] = ()) -> None:
        self.world = world
        self.cores: Processors = Cores(world, speeds)
        if speeds and overheads.slice_s:
            self.cores = FairCores(world, speeds, overheads.slice_s, overheads.tick_s)
        self.costs = overheads
        self.counts: defaultdict[str, float] = defaultdict(float)
        """What was done so far: ``requests``, ``pictures``, ``text``, ``tokens`` and ``wakes`` of
        clients, ``jobs``, ``batches``, ``transfers`` and their ``bytes``, ``steps`` that were told
        while the next was computed, ``turns`` behind the others and the sequences and prompts in
        them (``turn_tokens``, ``turn_prompts``), ``vision_steps``, and the
        ``seconds`` of all steps by the costs alone."""
        self._client = Thread(self.cores)
        self._router = Thread(self.cores)
        self._instances: dict[str, tuple[Thread, Lock]] = {}
        self._beside: set[asyncio.Task[None]] = set()
        """Work that nobody waits for."""

    def around(self, costs: Costs) -> Costs:
        """Costs of steps with the work around them."""
        return InServer(costs, self)

    async def asked(self, arrival: Arrival) -> None:
        """A client sends a request and the router takes it in."""
        self.counts["requests"] += 1
        self.counts["pictures"] += len(arrival.images)
        self.counts["text"] += arrival.num_text
        await self._client.run(_request_s(self.costs.client, arrival))
        await self.hop()
        await self._router.run(_request_s(self.costs.router, arrival))

    async def hop(self) -> None:
        """A message on its way to a thread that must be woken."""
        if self.costs.hop_s:
            await asyncio.sleep(self.costs.hop_s)

    async def submitting(self) -> None:
        """The router sends a job."""
        self.counts["jobs"] += 1
        await self._router.run(self.costs.router.job_s)

    async def accepted(self, instance: InstanceId) -> None:
        """An instance takes a job."""
        await self._of(instance).run(self.costs.instance.job_s)

    async def sent(self, instance: InstanceId, batch: EventBatch) -> None:
        """An instance sends events."""
        self.counts["batches"] += bool(batch.events)
        await self._of(instance).run(_batch_s(self.costs.instance, batch.events))

    async def ended(self, instance: InstanceId, batch: EventBatch) -> None:
        """What the instance still does for the jobs whose end it has told."""
        num_ended = sum(isinstance(each, Encoded | Finished | Failed) for each in batch.events)
        if num_ended and self.costs.instance.ended_s:
            await self._of(instance).run(self.costs.instance.ended_s * num_ended)

    async def heard(self, batch: EventBatch) -> None:
        """The router reads them; what tokens cost it is in ``Reader``."""
        if batch.events:
            await self._router.run(self.costs.router.batch_s)

    def stepped(self, instance: InstanceId) -> None:
        """An instance takes in a step of a run, while the next one is computed."""
        self.counts["steps"] += 1
        if self.costs.step_s:
            self._keep(asyncio.create_task(self._of(instance).run(self.costs.step_s)))

    def turned(self, instance: InstanceId, step: tuple[int, int], then: Callable[[], None]) -> None:
        """An instance takes in a step of so many sequences and prompts among them, and plans what
        comes next; ``then`` that begins."""
        costs, (num_jobs, num_prompts) = self.costs, step
        self.counts["turns"] += 1
        self.counts["turn_tokens"] += num_jobs
        self.counts["turn_prompts"] += num_prompts
        work_s = costs.turn_s + costs.turn_token_s * num_jobs + costs.turn_prompt_s * num_prompts
        self._turn(instance, work_s, then)

    def encoded(self, instance: InstanceId, then: Callable[[], None]) -> None:
        """The same of a step of pictures."""
        self.counts["vision_steps"] += 1
        self._turn(instance, self.costs.vision_step_s, then)

    def _turn(self, instance: InstanceId, work_s: float, then: Callable[[], None]) -> None:
        if work_s or self.costs.turn_wait_s:
            self._keep(asyncio.create_task(self._turned(instance, work_s, then)))
        else:
            then()

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _turned(self, instance: InstanceId, work_s: float, then: Callable[[], None]) -> None:
        if self.costs.turn_wait_s:
            await asyncio.sleep(self.costs.turn_wait_s)
        await self._of(instance).run(work_s)
        then()

    async def moved(self, giver: InstanceId, taker: InstanceId, num_bytes: int) -> None:
        """Bytes were moved: half the work is the giver's."""
        costs = self.costs
        self.counts["transfers"] += 1
        self.counts["bytes"] += num_bytes
        work_s = costs.transfer_s + costs.transfer_byte_s * num_bytes
        await self._of(giver).run(work_s / 2)
        await self._of(taker).run(work_s / 2)
        if costs.transfer_wait_s:
            await asyncio.sleep(costs.transfer_wait_s)

    async def decoded(self, width: int, height: int) -> None:
        """A picture was decoded, in a process of its own."""
        work_s = self.costs.picture_s + self.costs.megapixel_s * width * height / 1e6
        await self.cores.run(work_s)
        await asyncio.sleep(self.costs.picture_wait_s)

    async def told(self, num_tokens: int) -> None:
        """The router writes tokens to a client."""
        self.counts["tokens"] += num_tokens
        await self._router.run(self.costs.router.token_s * num_tokens)

    def answered(self) -> None:
        """An answer is over; router and client still have work for it that it does not wait for."""
        for thread, costs in ((self._router, self.costs.router), (self._client, self.costs.client)):
            if costs.ended_s:
                self._keep(asyncio.create_task(thread.run(costs.ended_s)))

    async def settled(self) -> None:
        """Until all is done that nobody waited for."""
        while self._beside:
            await asyncio.wait(set(self._beside))

    async def read(self, num_tokens: int) -> None:
        """They reach the client, who has to wake up for them if it does nothing else."""
        await self.hop()
        work_s = self.costs.client.token_s * num_tokens
        if not self._client.is_busy:
            self.counts["wakes"] += 1
            work_s += self.costs.client.batch_s
        await self._client.run(work_s)

    def under(self, instance: InstanceId, nice: int = 0) -> Shared:
        """What one more thread of an instance, as nice as that, computes its steps on: processors,
        and the lock of the interpreter that it shares with the instance's event loop. An
        accelerator computes without either."""
        if not self.costs.speeds:
            return self.cores
        lock, runner = self._of_place(instance)[1], Runner(NICER**nice)
        if self.costs.frees_lock:
            return Free(self.cores, lock, runner)
        return Held(lock, runner)

    def _of(self, instance: InstanceId) -> Thread:
        return self._of_place(instance)[0]

    def _of_place(self, instance: InstanceId) -> tuple[Thread, Lock]:
        place = instance.partition("@")[0]
        if place not in self._instances:
            lock = Lock(self.cores)
            self._instances[place] = Thread(self.cores, lock), lock
        return self._instances[place]


class Reader:
    """The client's end of one answer."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._reading: set[asyncio.Task[None]] = set()
        self.times_s: list[float] = []
        """When each token was there."""

    async def take(self, num_tokens: int) -> None:
        """The router gives tokens away; returns when it has."""
        await self._threads.told(num_tokens)
        task = asyncio.create_task(self._read(num_tokens))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def all(self) -> None:
        """Until everything was read."""
        if self._reading:
            await asyncio.wait(self._reading)

    async def _read(self, num_tokens: int) -> None:
        await self._threads.read(num_tokens)
        self.times_s += [self._threads.world.time()] * num_tokens


class InServer:
    """Costs of steps on cores that others use, whose seconds are counted: executors alone ask, and
    once for each step. Implements ``Costs``."""

    def __init__(self, costs: Costs, threads: Threads) -> None:
        self._costs = costs
        self._around = threads.costs
        self._counts = threads.counts

    def vision_s(self, pictures: Sequence[int]) -> float:
        """See ``Costs``."""
        return self._with(self._costs.vision_s(pictures))

    def language_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, context: int
    ) -> float:
        """See ``Costs``."""
        return self._with(self._costs.language_s(chunks, num_decodes, context))

    def decode_run_s(self, num_decodes: int, context: int, steps: int) -> float:
        """See ``Costs``."""
        return self._with(self._costs.decode_run_s(num_decodes, context, steps))

    def _with(self, seconds: float) -> float:
        self._counts["seconds"] += seconds
        return self._around.slowdown * seconds


def _request_s(costs: Handling, arrival: Arrival) -> float:
    pictures_s = costs.picture_s * len(arrival.images)
    return costs.request_s + pictures_s + costs.text_s * arrival.num_text


def _batch_s(costs: Handling, events: Sequence[Event]) -> float:
    if not events:
        return 0.0
    num_tokens = sum(len(each.tokens) for each in events if isinstance(each, Tokens))
    return costs.batch_s + costs.token_s * num_tokens
