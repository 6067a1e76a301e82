"""Wires the router: cluster, dispatcher, policies, request service, doors."""

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from cluster.build import Cluster
from cluster.catalog import Catalog
from cluster.publishing import Follower, follow
from router.advising import Advising
from router.dispatch import Dispatcher
from router.doors.admin_door import create_app as admin_app
from router.doors.auth import ApiKeys
from router.doors.grpc_door import GrpcDoor
from router.doors.http_door import create_app
from router.doors.intake import Intake
from router.doors.servers import HttpServer
from router.fleet_watch import FleetWatch
from router.gate import Gate, Looked
from router.journey import Stages
from router.knowledge import Knowledge
from router.ledger import Ledger
from router.service import RequestService, Words
from scheduler.admission import Admission
from scheduler.costs import Costs
from scheduler.forecast import Forecast
from scheduler.grouped import Grouped
from scheduler.latency import Latencies
from scheduler.predict import Speeds
from scheduler.registry import costs_of, placement, terms
from triptych.core.clock import Clock, MonotonicClock
from triptych.core.config import Config
from triptych.core.errors import ConfigError, Unavailable
from triptych.core.ids import SessionId
from triptych.core.lifecycle import Stage
from triptych.inputs.model_card import ModelCard, load_card
from triptych.inputs.prompts import PromptBuilder, Prompts


class Core:
    """The router without doors: everything between a request and the instances."""

    def __init__(self, stages: Stages, service: RequestService, secret: bytes,
                 follower: Follower | None, watch: FleetWatch,
                 costs: Costs | None) -> None:  # fmt: skip
        self.stages = stages
        self.dispatcher = stages.dispatcher
        self.service = service
        self.ledger = stages.ledger
        self.clock = stages.clock
        self.watch = watch
        """What is known of instances and of what is asked of them."""
        self.secret = secret
        self.costs = costs
        self._follower = follower

    async def close(self) -> None:
        """End what runs and every session."""
        await self.service.drain(0.0)
        await self.dispatcher.close()
        if self._follower is not None:
            await self._follower.close()
        self.service.close()


class Surroundings(msgspec.Struct, frozen=True):
    """What a core is given from outside: what it serves, and its time."""

    card: ModelCard
    prompts: Prompts
    clock: Clock
    words: Words | None = None
    """Makes text of tokens; by the tokenizer of ``prompts`` if None."""
    speeds: Speeds | None = None
    """What steps take, as far as it is known; by ``router.profile`` if None."""
    costs: Costs | None = None
    """The same of one instance, for policies of roles; by ``router.profile`` if None."""

    @classmethod
    def real(cls, path: str) -> Self:
        """For the model in the folder ``path``, on this machine. Raises ConfigError."""
        card = load_card(path)
        return cls(card, PromptBuilder(card, path), MonotonicClock())


async def start_core(
    config: Config, cluster: Cluster, surroundings: Surroundings | None = None
) -> Core:
    """Open a session to every instance and wait until every stage serves."""
    around = surroundings or Surroundings.real(config.model.path)
    clock = around.clock
    secret = cluster.secret
    align = config.engine.chunk_tokens if config.engine.deterministic else 1
    profile = _profile(config.router.profile)
    speeds = around.speeds or (Speeds() if profile is None else Speeds(profile, profile))
    forecast = Forecast(Latencies(speeds), terms(config.engine))
    knowledge = Knowledge(Catalog(), forecast.latencies, align, forecast)
    dispatcher = Dispatcher(cluster, SessionId(f"router-{secrets.token_hex(4)}"), knowledge)
    cluster.on_change(dispatcher.refresh)
    dispatcher.refresh()
    ledger = Ledger(clock, Path(config.router.ledger) if config.router.ledger else None)
    policy = placement(
        config.router.placement, knowledge.latencies, forecast, config.router.picture_share
    )
    groups: dict[str, str] = {}
    placing = Grouped(policy, groups), knowledge
    stages = Stages(dispatcher, placing, ledger, config.router, clock)
    await _until_ready(dispatcher, config.cluster.start_timeout_s)
    admission = Admission(config.limits.max_requests, config.limits.max_requests_per_tenant)
    admitting = admission, _gate(config, dispatcher, forecast, clock)
    service = RequestService(config, around.card, around.prompts, stages, admitting, secret)
    if around.words is not None:
        service.words = around.words
    costs = around.costs or profile
    watch = FleetWatch(clock, dispatcher.view, config.engine, costs)
    watch.groups = groups
    dispatcher.witness, service.watch = watch.occupancy, watch
    follower = follow(config, secret, knowledge.catalog, lambda: dispatcher.live)
    return Core(stages, service, secret, follower, watch, costs)


def _profile(path: str) -> Costs | None:
    """What a profile says of steps, if there is one. Raises ConfigError."""
    if not path:
        return None
    try:
        return costs_of(Path(path).read_bytes(), "router.profile")
    except OSError as error:
        raise ConfigError(f"router.profile: {path}: {error.strerror}") from error


def _gate(config: Config, dispatcher: Dispatcher, forecast: Forecast, clock: Clock) -> Gate | None:
    """The gate, where requests are admitted by predictions."""
    if config.admission.policy == "count":
        return None
    looked_at = Looked(view=dispatcher.view, num_jobs=lambda: dispatcher.num_jobs)
    gate = Gate(config.admission, forecast, looked_at, clock)
    dispatcher.on_relief = gate.look
    return gate


async def _until_ready(dispatcher: Dispatcher, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                dispatcher.changed.clear()
                view = dispatcher.view()
                if all(view.serving(stage) for stage in Stage):
                    return
                await dispatcher.changed.wait()
    except TimeoutError:
        raise Unavailable(f"not every stage serves after {timeout_s:.0f} s") from None


class Router:
    """Core and doors, running."""

    def __init__(self, config: Config, cluster: Cluster, core: Core, doors: "_Doors") -> None:
        self._config = config
        self._advising = asyncio.create_task(doors.advising.run())
        self._cluster = cluster
        self._core = core
        self._doors = doors
        self.model = core.service.model
        self.http = doors.http.address
        self.grpc = doors.grpc.address
        self.admin = doors.admin.address if doors.admin else ""

    async def close(self) -> bool:
        """Refuse new requests, wait for those in flight, stop everything. Whether none was cut."""
        self._core.service.refuse()
        was_clean = await self._core.service.drain(self._config.cluster.drain_s)
        self._advising.cancel()
        await asyncio.gather(self._advising, return_exceptions=True)
        await self._doors.close()
        await self._core.close()
        await self._cluster.close()
        return was_clean


class _Doors:
    """The three servers."""

    def __init__(
        self, http: HttpServer, grpc: GrpcDoor, admin: HttpServer | None, advising: Advising
    ) -> None:
        self.http = http
        self.grpc = grpc
        self.admin = admin
        self.advising = advising

    async def open(self) -> None:
        """HTTP last: who is told there that the server is ready finds the others open."""
        if self.admin is not None:
            await self.admin.start()
        await self.grpc.start()
        await self.http.start()

    async def close(self) -> None:
        await self.http.close()
        await self.grpc.close()
        if self.admin is not None:
            await self.admin.close()


async def start_router(
    config: Config, cluster: Cluster, on_progress: Callable[[str], None]
) -> Router:
    """Start the core and open the doors. On an error everything of the router is closed again."""
    on_progress("router: waiting for every stage")
    core = await start_core(config, cluster)
    try:
        doors = await _open_doors(config, cluster, core)
    except BaseException:
        await core.close()
        raise
    return Router(config, cluster, core, doors)


async def _open_doors(config: Config, cluster: Cluster, core: Core) -> _Doors:
    settings = config.router
    keys = ApiKeys(settings.api_keys)
    intake = Intake(config, load_card(config.model.path), core.clock)
    http = HttpServer(create_app(core.service, intake, keys), settings.http, "router.http",
                      config.limits.write_stall_s)  # fmt: skip
    admin, advising = None, Advising(config, core.watch, core.clock, core.costs)
    if settings.admin:
        key = settings.admin_key
        app = admin_app(cluster.census, core.dispatcher, core.ledger, advising, key)
        admin = HttpServer(app, settings.admin, "router.admin")
    grpc = GrpcDoor(core.service, intake, keys, settings.grpc)
    doors = _Doors(http, grpc, admin, advising)
    try:
        await doors.open()
    except BaseException:
        await doors.close()
        raise
    return doors
