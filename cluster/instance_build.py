"""Wires one instance: executors of its role, caches, engines, transfers and the services of its
stages. One embedding cache and one language engine, whichever stages share them."""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import msgspec

from cluster.bulletin import Bulletin
from cluster.followers import watch
from cluster.host import InstanceSpec
from cluster.instance import HostedInstance, Parts, Rows, Service
from cluster.machine import Machine, ThisMachine
from cluster.publishing import Publishing
from cluster.tiers_build import Movers, prefixes_of, tell
from decode_service.service import DecodeService
from encoder_service.build import build_encode
from encoder_service.pictures import Pictures
from encoder_service.recall import Recall
from kvtransfer.intake import Intake
from kvtransfer.lending import Lending
from kvtransfer.prefixes import Lent, Prefixes
from prefill_service.service import PrefillService
from scheduler import registry
from scheduler.costs import Costs
from scheduler.prior import PRIOR
from triptych.cache.embeddings import EmbeddingCache
from triptych.cache.eviction import ORDERS as EVICTION_ORDERS
from triptych.cache.kv import KvCache
from triptych.codec.formats import FORMATS
from triptych.core.catalog import LinkReport, Tier
from triptych.core.handoff import Endpoint
from triptych.core.ids import SessionId
from triptych.core.lifecycle import Stage
from triptych.core.plan import LanguagePlan, LanguageResult
from triptych.core.ports import Executors, LanguageExecutor, OnDrawn
from triptych.core.view import Description
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Outcome, Starved
from triptych.engine.policies import Beside, Moment, Visual
from triptych.engine.pump import Pump
from triptych.engine.vision import VisionEngine
from triptych.inputs.model_card import ModelCard
from triptych.wire.sessions import Sessions


async def build_instance(spec: InstanceSpec, machine: Machine | None = None) -> HostedInstance:
    """Build and start an instance in this process, on this machine or a modelled one; loading
    weights takes its time. Raises ConfigError."""
    machine = machine or ThisMachine()
    card = machine.card(spec.config)
    costs = machine.costs(spec)
    config = registry.settle(spec.config, frozenset(spec.role), costs)
    spec = msgspec.structs.replace(spec, config=config)
    executors = await machine.executors(spec, card)
    try:
        tiers = await machine.tiers(spec, executors)
    except BaseException:
        executors.close()
        raise
    known = PRIOR if costs is None else costs
    assembly = _Assembly(spec, card, executors, tiers, machine, known)
    try:
        return assembly.instance()
    except BaseException:
        await assembly.close()
        raise


class _Assembly:
    """The parts of one instance while they are put together."""

    def __init__(
        self,
        spec: InstanceSpec,
        card: ModelCard,
        executors: Executors,
        tiers: Movers,
        machine: Machine,
        costs: Costs,
    ) -> None:
        self._spec = spec
        self._costs = costs
        self._card = card
        self._executors = executors
        self._tiers = tiers
        self._machine = machine
        self._clock = machine.clock
        self._instance: HostedInstance | None = None
        self._intake: Intake | None = None
        self._recall: Recall | None = None
        config = spec.config
        self._bulletin = Bulletin(config.cluster.directory_flush_s)
        self._sessions = Sessions(config.cluster.heartbeat_s, self._session_ended)
        self._outbox, self._receiver = machine.wires(spec)
        self._services: dict[Stage, Service] = {}
        self._lending: Lending | None = None
        self._language: LanguageEngine | None = None
        self._pumps: list[Pump[Any, Any]] = []
        self._censuses: list[Callable[[], Rows]] = []
        self._checks: list[Callable[[], None]] = []
        self._closing = AsyncExitStack()
        """Closes in the reverse order of building."""
        self._closing.callback(executors.close)
        self._closing.push_async_callback(tiers.close)
        for mover in (tiers.kv, tiers.embedding):
            if mover is not None:
                self._censuses.append(mover.census)
                self._checks.append(mover.check)
        self._closing.push_async_callback(self._outbox.close)
        self._closing.push_async_callback(self._receiver.close)
        self._closing.callback(machine.forget, spec.id)

    async def close(self) -> None:
        """Give back what was built so far."""
        await self._closing.aclose()

    def instance(self) -> HostedInstance:
        """The running instance."""
        self._check_wire()
        endpoint = self._outbox.start()
        cache = self._embedding_cache()
        if self._executors.vision is not None and cache is not None:
            self._add_encode(cache)
        if self._executors.language is not None:
            self._add_language(cache)
        self._censuses.append(lambda: (self._outbox.census() + self._receiver.census(), {}))
        publishing = Publishing(self._spec, self._bulletin, self._sessions, self._links)
        self._closing.push_async_callback(publishing.close)
        pumps = [pump.run() for pump in self._pumps]
        if self._executors.pids:
            pumps.append(watch(self._executors.pids, self._executors.abandon))
        instance = HostedInstance(
            Parts(
                description=self._describe(endpoint),
                services=self._services,
                lending=self._lending,
                sessions=self._sessions,
                pumps=tuple(pumps),
                censuses=tuple(self._censuses),
                checks=tuple(self._checks) if self._spec.config.cluster.verify_idle else (),
                close=self.close,
            )
        )
        self._instance = instance
        return instance

    def _check_wire(self) -> None:
        """Raise ConfigError unless every store's blocks can travel in the configured format."""
        wire, executors = FORMATS[self._spec.config.transfer.wire], self._executors
        if executors.language is not None:
            wire.check(executors.language.memory.layout, "transfer.wire")
        if executors.embeddings is not None:
            wire.check(executors.embeddings.layout, "transfer.wire")

    def _embedding_cache(self) -> EmbeddingCache | None:
        if self._executors.embeddings is None:
            return None
        config = self._spec.config.cache
        cache = EmbeddingCache(
            config.embedding_blocks,
            config.embedding_block_size,
            order=EVICTION_ORDERS[config.eviction],
        )
        self._censuses.append(lambda: (cache.holdings(), cache.totals()))
        cache.watch_room(self._wake)
        self._bulletin.watch("item", Tier.DEVICE, cache.watchers)
        if self._tiers.embedding is not None:
            tell("item", cache.watchers, self._tiers.embedding, self._bulletin)
        return cache

    def _add_encode(self, cache: EmbeddingCache) -> None:
        executor = self._executors.vision
        assert executor is not None
        config = self._spec.config
        budgets = config.engine
        if executor.encodes_alone:
            budgets = msgspec.structs.replace(budgets, image_budget_tokens=1)
        engine = VisionEngine(
            budgets,
            cache,
            order=registry.encode_order(config.engine, self._costs),
            split=self._split(),
            must_wait=self._must_wait,
            patience_s=config.transfer.guard_s,
        )
        decoders = self._machine.decoders(config.limits)
        bound = config.engine.max_sequences + config.engine.max_waiting
        pictures = Pictures(decoders, self._card.image.patch_size, bound)
        tiers = self._tiers.embedding
        recall = self._recall = Recall(cache, tiers, self._clock, self._must_wait)
        emit = self._sessions.emit
        service, pump = build_encode(
            engine, executor, self._outbox, (pictures, recall), self._clock, self._wake, emit
        )
        self._closing.push_async_callback(pictures.close)
        asyncio.get_running_loop().call_soon(decoders.warm)
        self._closing.push_async_callback(pump.close)
        self._services[Stage.ENCODE] = service
        self._pumps.append(pump)
        self._censuses.append(lambda: (_jobs(engine.census()), {}))
        self._checks.append(engine.check)

    def _kv_cache(self) -> KvCache:
        config = self._spec.config.cache
        cache = KvCache(
            config.kv_blocks,
            config.block_size,
            self._card.fingerprint,
            prefix=config.prefix,
            order=EVICTION_ORDERS[config.eviction],
        )
        self._bulletin.watch("kv", Tier.DEVICE, cache.watchers)
        return cache

    def _add_language(self, cache: EmbeddingCache | None) -> None:
        """Prefill, decode or both over one engine."""
        spec, config, executor = self._spec, self._spec.config, self._executors.language
        assert executor is not None
        clock, emit, memory = self._clock, self._sessions.emit, executor.memory
        kv = self._kv_cache()
        lent = Lent(self._receiver, memory, clock, config.transfer.lease_s)
        prefixes = prefixes_of(kv, self._tiers.kv, lent, self._bulletin)
        lending = self._lending = Lending(kv, memory, self._outbox, self._wake, emit)
        can_prefill = Stage.PREFILL in spec.role
        engine = self._language = self._language_engine(kv, prefixes, executor)
        services: list[PrefillService | DecodeService] = []

        def tell(outcomes: Sequence[Outcome]) -> None:
            for outcome in outcomes:
                if isinstance(outcome, Starved):
                    lending.relieve()
                any(service.handle(outcome) for service in services)

        def begin(plan: LanguagePlan, told: OnDrawn) -> Callable[[], LanguageResult]:
            prefill, on_layers = self._services.get(Stage.PREFILL), None
            if isinstance(prefill, PrefillService) and config.transfer.layerwise:
                on_layers = prefill.watch(plan)
            on_drawn = told if executor.tells_steps and plan.steps > 1 else None
            return partial(executor.execute, plan, on_layers, on_drawn)

        interrupt = None if engine.max_steps == 1 else executor.interrupt
        pump = Pump(engine, executor, clock, tell, begin, interrupt)
        sources = None
        if can_prefill and cache is not None and executor.embeddings is not None:
            intake = self._intake = Intake(
                cache,
                executor.embeddings,
                self._receiver,
                spec.id,
                clock,
                self._tiers.embedding,
            )
            self._closing.push_async_callback(intake.close)
            self._censuses.append(lambda: (intake.census(), {}))
            sources = (intake, cache, prefixes)
            prefill = PrefillService(engine, memory, self._outbox, sources, clock, self._wake, emit)
            self._services[Stage.PREFILL] = prefill
            services.append(prefill)
        if Stage.DECODE in spec.role:
            decode = DecodeService(engine, memory, self._receiver, sources, clock, self._wake, emit)
            decode.stream_interval = config.engine.stream_interval
            self._services[Stage.DECODE] = decode
            services.append(decode)
        self._closing.push_async_callback(pump.close)
        self._pumps.append(pump)
        self._censuses.append(engine.census)
        self._checks.append(engine.check)

    def _language_engine(
        self, kv: KvCache, prefixes: Prefixes, executor: LanguageExecutor
    ) -> LanguageEngine:
        config = self._spec.config
        engine = LanguageEngine(
            config.engine,
            kv,
            registry.policies(config.engine, self._costs),
            recomputes_items=Stage.PREFILL in self._spec.role,
            max_tokens=self._max_tokens(),
            elsewhere=prefixes.elsewhere,
            patience_s=config.transfer.guard_s,
        )
        engine.max_steps, engine.are_told = executor.max_steps, executor.tells_steps
        if executor.tells_steps:
            engine.max_steps = min(executor.max_steps, config.engine.steps_ahead)
        engine.watch_waiting(prefixes.foresee)
        return engine

    def _links(self) -> tuple[LinkReport, ...]:
        """Links as the receiver measured them."""
        return tuple(self._receiver.links())

    def _wake(self) -> None:
        """What one engine let go of, or finished, may be what the other waits for."""
        for pump in self._pumps:
            pump.wake()
        if self._recall is not None:
            self._recall.wake()
        if self._instance is not None:
            self._instance.touch()

    def _session_ended(self, session: SessionId) -> None:
        if self._instance is not None:
            self._instance.session_ended(session)

    def _must_wait(self) -> bool:
        """Whether prompts wait for room for all their pictures: encode takes none before them."""
        return self._intake is not None and self._intake.num_waiting > 0

    def _split(self) -> Callable[[Sequence[Visual], Sequence[Visual], Moment], float] | None:
        """Which part of the device pictures may take beside the language engine's work."""
        policy = registry.split(self._spec.config.engine, self._costs)
        if policy is None:
            return None

        def share(step: Sequence[Visual], waiting: Sequence[Visual], moment: Moment) -> float:
            beside = Beside() if self._language is None else self._language.beside()
            return policy(step, waiting, beside, moment)

        return share

    def _max_tokens(self) -> int:
        """Longest sequence that the model and the blocks take."""
        cache = self._spec.config.cache
        return min(self._card.max_positions, cache.kv_blocks * cache.block_size)

    def _describe(self, endpoint: Endpoint) -> Description:
        executors = self._executors
        language, embeddings = executors.language, executors.embeddings
        return Description(
            id=self._spec.id,
            role=self._spec.role,
            model=self._card.fingerprint,
            transfer=endpoint,
            kv=None if language is None else language.memory.layout,
            embedding=None if embeddings is None else embeddings.layout,
            num_kv_blocks=0 if language is None else language.memory.num_blocks,
            num_embedding_blocks=0 if embeddings is None else embeddings.num_blocks,
            max_tokens=0 if language is None else self._max_tokens(),
            pid=os.getpid(),
            memory_bytes=executors.memory_bytes,
        )


def _jobs(census: Rows) -> list[Any]:
    """Only the jobs of an engine whose blocks the cache counts itself."""
    return [row for row in census[0] if row.kind == "job"]
