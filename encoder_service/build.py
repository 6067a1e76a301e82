"""Wires the encode stage of one instance: engine, pump and service."""

from collections.abc import Callable, Sequence
from typing import Any

from encoder_service.pictures import Pictures
from encoder_service.recall import Recall
from encoder_service.service import EncodeService
from kvtransfer.promises import Promises
from triptych.core.clock import Clock
from triptych.core.event import Event
from triptych.core.ports import VisionExecutor
from triptych.engine.outcome import Outcome
from triptych.engine.pump import Pump
from triptych.engine.vision import VisionEngine


def build_encode(
    engine: VisionEngine,
    executor: VisionExecutor,
    outbox: Promises,
    pictures: tuple[Pictures, Recall],
    clock: Clock,
    wake: Callable[[], None],
    emit: Callable[[Event], None],
) -> tuple[EncodeService, Pump[Any, Any]]:
    """The service, and the pump that drives its engine; ``wake`` must wake that pump."""

    def tell(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            service.handle(outcome)

    service = EncodeService(engine, executor.embeddings, outbox, pictures, clock, wake, emit)
    pump = Pump(engine, executor, clock, tell)
    pump.be_nice(executor.nice)
    return service, pump
