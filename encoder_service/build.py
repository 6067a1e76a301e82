"""Wires the encode stage of one instance: engine, pump, decoding children, service."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from encoder_service.pictures import Pictures
from encoder_service.service import EncodeService
from kvtransfer.sender import Outbox
from triptych.cache.embeddings import EmbeddingCache
from triptych.core.clock import Clock
from triptych.core.config import Config
from triptych.core.event import Event
from triptych.core.ports import VisionExecutor
from triptych.engine.outcome import Outcome
from triptych.engine.pump import Pump
from triptych.engine.vision import VisionEngine
from triptych.inputs.decode import DecoderPool


class EncodeStage(msgspec.Struct, frozen=True):
    """The encode stage and what must be run and closed with it."""

    service: EncodeService
    engine: VisionEngine
    pump: Pump[Any, Any]
    pool: DecoderPool


def build_encode(
    executor: VisionExecutor,
    cache: EmbeddingCache,
    outbox: Outbox,
    patch_size: int,
    config: Config,
    clock: Clock,
    emit: Callable[[Event], None],
) -> EncodeStage:
    """The stage over the instance's executor, embedding cache and outbox."""

    def tell(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            service.handle(outcome)

    engine = VisionEngine(config.engine, cache)
    pump = Pump(engine, executor, clock, tell)
    pool = DecoderPool(config.limits)
    bound = config.engine.max_sequences + config.engine.max_waiting
    pictures = Pictures(pool, patch_size, bound)
    service = EncodeService(engine, executor.embeddings, outbox, pictures, clock, pump.wake, emit)
    return EncodeStage(service, engine, pump, pool)
