"""One simulated run: a cluster of the world, clients that follow a workload, and what came of it.

The router, its journey, policies, instances and leases are the server's. Equal arguments give the
same run, byte for byte.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial

import msgspec

from bench.run import Row, Run
from bench.workload import Arrival
from cluster.build import start_cluster
from cluster.roles import places_of
from router.answer import Final, Timeline
from router.build import Core, Surroundings, start_core
from router.role_advice import RoleAdviser
from scheduler.predict import Speeds
from simulator.garbage import seldom_collected
from simulator.happenings import Census, Happening, Happenings
from simulator.hardware import Hardware
from simulator.hopeless import Hopeless
from simulator.host import SimulatedHost
from simulator.recorder import Recorder
from simulator.roles import RolesOverTime, problem_of, sample_queues
from simulator.texts import SimulatedPrompts, Unspoken
from simulator.threads import Reader, Threads
from simulator.world import World
from triptych.core import topology
from triptych.core.config import Config
from triptych.core.errors import Cancelled, DeadlineExceeded, Overloaded, TriptychError
from triptych.core.event import Tokens
from triptych.core.metrics import slo_class
from triptych.core.request import Request, Slo

Progress = Callable[[float, int], None]
"""Hears now and then of the virtual time and the requests that are over."""


class Plan(msgspec.Struct, frozen=True):
    """What is run."""

    system: str
    workload: str
    config: Config
    hardware: Hardware
    rate: float
    duration_s: float
    seed: int = 0
    warmup_s: float = 0.0
    drain_s: float = 600.0
    """How long behind the last arrival requests may take; then they are cut off."""
    keeps_busy: bool = True
    happenings: tuple[Happening, ...] = ()
    groups: dict[str, str] = {}
    """Modality group by place at the start, for policies that have groups."""
    sample_s: float = 0.0
    """Queues are recorded this often; 0: never."""
    slo: Slo | None = None
    """Of every request, instead of its class's."""
    least: float = 0.0
    """A run whose attainment must be below this is given up (``simulator.hopeless``): it is
    ``invalid``, and has rows only of requests that were over or late."""


def simulate(
    plan: Plan,
    arrivals: Iterable[Arrival],
    on_progress: Progress | None = None,
    on_host: Callable[[SimulatedHost], None] | None = None,
) -> Run:
    """Run ``arrivals`` through the cluster of ``plan``. Raises ConfigError. ``on_host`` is given
    the machines before anything starts."""
    world = World()
    recorder = Recorder(world, keeps_busy=plan.keeps_busy)
    if on_progress is not None:
        recorder.on_row = lambda _: on_progress(world.time(), len(recorder.rows))
    try:
        drive = _Drive(plan, world, recorder, on_host)
        if plan.least > 0.0:
            arrivals = list(arrivals)
            drive.judge(arrivals)
        with seldom_collected():
            world.run_until_complete(drive.run(iter(arrivals)))
    finally:
        world.close()
    recorder.close()
    recorder.rows.sort(key=lambda row: (row.arrival_s, row.id))
    return Run(
        system=plan.system,
        workload=plan.workload,
        rate=plan.rate,
        seed=plan.seed,
        num_gpus=num_gpus(plan.config, plan.hardware),
        duration_s=plan.duration_s,
        rows=tuple(recorder.rows),
        warmup_s=plan.warmup_s,
        busy=tuple(recorder.busy),
        queues=tuple(recorder.queues),
        changes=tuple(recorder.changes),
        invalid=drive.given_up,
    )


def num_gpus(config: Config, hardware: Hardware) -> int:
    """GPUs that a topology takes; those of places that share them count once."""
    places = dict(places_of(config.cluster.topology))
    own = {place: hardware.num_gpus(topology.name(role)) for place, role in places.items()}
    shared = [[own.pop(place) for place in group.places] for group in hardware.colocated]
    return sum(own.values()) + sum(map(max, shared))


class _Drive:
    """Clients of one run."""

    def __init__(
        self,
        plan: Plan,
        world: World,
        recorder: Recorder,
        on_host: Callable[[SimulatedHost], None] | None,
    ) -> None:
        self._plan = plan
        self._on_host = on_host
        self._world = world
        self._recorder = recorder
        self._prompts = SimulatedPrompts()
        self._threads: Threads | None = None
        self._begin_s = 0.0
        self._num_sent = 0
        self._clients: dict[asyncio.Task[None], None] = {}
        """In the order of their requests."""
        self._sessions: dict[str, asyncio.Task[None]] = {}
        """The last request of each conversation."""
        self._hopeless: Hopeless | None = None
        self.given_up = ""
        """When the run was given up; empty if it was not."""

    def judge(self, arrivals: Sequence[Arrival]) -> None:
        """Give the run up where it cannot attain any more what its plan asks for."""
        plan, recorder = self._plan, self._recorder
        judge = self._hopeless = Hopeless(plan.least, arrivals, plan.warmup_s, self._give_up)
        recorder.on_first = judge.began
        on_row = recorder.on_row

        def ended(row: Row) -> None:
            judge.ended(row)
            on_row(row)

        recorder.on_row = ended

    async def run(self, arrivals: Iterator[Arrival]) -> None:
        """Start, serve all arrivals, stop."""
        plan = self._plan
        host = SimulatedHost(self._world, plan.hardware, self._recorder)
        self._threads = host.threads
        if self._on_host is not None:
            self._on_host(host)
        first, _ = topology.parse(plan.config.cluster.topology)[0]
        costs = plan.hardware.card(topology.name(first)).costs
        around = Surroundings(
            card=host.card,
            prompts=self._prompts,
            clock=self._world,
            words=Unspoken,
            speeds=Speeds(costs, costs),
            costs=costs,
        )
        async with AsyncExitStack() as closing:
            cluster = await start_cluster(plan.config, host=host)
            closing.push_async_callback(cluster.close, 0.0)
            core = await start_core(plan.config, cluster, around)
            closing.push_async_callback(core.close)
            host.is_started = True
            self._begin_s = self._recorder.begin_s = self._world.time()
            seen = core.watch.occupancy.told
            host.on_decoding = lambda job: seen(Tokens(job, ()))
            happenings = Happenings(host, cluster)
            happenings.begin(plan.happenings)
            closing.push_async_callback(happenings.close)
            beside = [asyncio.create_task(each) for each in self._beside(core, happenings)]
            closing.push_async_callback(_end, beside)
            closing.callback(Census(cluster, self._recorder).close)
            await self._serve(core, arrivals)

    def _beside(self, core: Core, happenings: Happenings) -> Iterator[Coroutine[None, None, None]]:
        """Who looks at the instances now and then, and perhaps moves them. Raises ConfigError."""
        plan, watch = self._plan, core.watch
        watch.groups |= plan.groups
        if plan.sample_s:
            yield sample_queues(self._recorder, watch, plan.sample_s)
        settings = plan.config.router
        if settings.roles != "static":
            problem = partial(problem_of, plan.config, plan.hardware)
            adviser = RoleAdviser(settings.roles, watch, problem)
            roles = RolesOverTime(self._world, adviser, watch, happenings)
            yield roles.run(settings.roles_period_s)

    def _give_up(self) -> None:
        passed_s = self._world.time() - self._begin_s
        self.given_up = f"given up after {passed_s:.1f} s, with {self._num_sent} requests"
        for client in list(self._clients):
            client.cancel()

    async def _serve(self, core: Core, arrivals: Iterator[Arrival]) -> None:
        for arrival in arrivals:
            if arrival.after_s is None:
                at_s = self._begin_s + arrival.at_s
                if at_s > self._world.time():
                    await asyncio.sleep(at_s - self._world.time())
            if self.given_up:
                break
            before = self._sessions.get(arrival.session) if arrival.after_s is not None else None
            client = asyncio.create_task(self._client(core, arrival, before, self._num_sent))
            self._num_sent += 1
            self._clients[client] = None
            client.add_done_callback(self._clients.pop)
            if arrival.session:
                self._sessions[arrival.session] = client
        if self._clients:
            await asyncio.wait(set(self._clients), timeout=self._plan.drain_s)
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        if self._threads is not None:
            await self._threads.settled()

    async def _client(
        self, core: Core, arrival: Arrival, before: "asyncio.Task[None] | None", number: int
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        if arrival.after_s is not None:
            await asyncio.sleep(arrival.after_s)
        slo = self._plan.slo or slo_class(arrival.slo, len(arrival.images))
        began_s = self._world.time()
        deadline_s = began_s + self._plan.config.limits.default_deadline_s
        request = self._prompts.request(number, arrival, slo, deadline_s)
        if self._hopeless is not None:
            self._hopeless.asked(request.id, began_s - self._begin_s, slo.ttft_s)
        status, code, final, times = await self._ask(core, arrival, request)
        judge = self._hopeless
        if self.given_up and judge is not None and not judge.is_late(request.id):
            return  # nobody knows what would have become of it
        timeline = None if final is None else final.timeline
        self._recorder.ended(
            Row(
                id=request.id,
                arrival_s=began_s - self._begin_s,
                slo=slo.name,
                ttft_slo_s=slo.ttft_s,
                tpot_slo_s=slo.tpot_s,
                num_images=len(arrival.images),
                image_tokens=sum(image.num_tokens for image in arrival.images),
                prompt_tokens=arrival.num_prompt,
                status=status,
                end_s=self._world.time() - self._begin_s,
                code=code,
                token_times_s=tuple(time_s - self._begin_s for time_s in times),
                cached_tokens=0 if final is None else final.usage.cached_tokens,
                tenant=arrival.tenant,
                session=arrival.session,
                attempts=1 if timeline is None else timeline.attempts,
                route=() if timeline is None else timeline.route,
                phases={} if timeline is None else _phases(timeline),
            )
        )
        if self._threads is not None and final is not None:
            self._threads.answered()

    async def _ask(
        self, core: Core, arrival: Arrival, request: Request
    ) -> tuple[str, str, Final | None, Sequence[float]]:
        """How a request ended, with which code; the last word, and when each token was there."""
        num_tokens = 0
        status, code = "ok", ""
        final: Final | None = None
        reader = None if self._threads is None else Reader(self._threads)
        try:
            if self._threads is not None:
                await self._threads.asked(arrival)
            ticket = core.service.admit(arrival.tenant)
            async with aclosing(core.service.generate(request, ticket)) as answer:
                async for part in answer:
                    if isinstance(part, Final):
                        final, num_tokens = part, part.usage.completion_tokens
                    elif reader is not None and part.tokens:
                        await reader.take(len(part.tokens))
            if reader is not None:
                await reader.all()
        except Overloaded as error:
            status, code = "refused", error.code
        except DeadlineExceeded as error:
            status, code = "timeout", error.code
        except (Cancelled, asyncio.CancelledError):
            status, code = "cancelled", Cancelled.code
        except TriptychError as error:
            status, code = "failed", error.code
        self._prompts.forget(request)
        times: Sequence[float] = self._recorder.times(request.id, num_tokens)
        if reader is not None:
            times = reader.times_s[:num_tokens]
        return status, code, final, times


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """End tasks; raise what one of them ended by before."""
    for task in tasks:
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):
            raise end


def _phases(timeline: Timeline) -> dict[str, float]:
    """Where a request's time went."""
    before_s = timeline.ttft_s
    return {
        "queue": timeline.queue_s,
        "encode": timeline.encode_s,
        "encode_transfer": timeline.encode_transfer_s,
        "prefill": timeline.prefill_s,
        "kv_transfer": timeline.kv_transfer_s,
        "decode": timeline.total_s - before_s,
    }
