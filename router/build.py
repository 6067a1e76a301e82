"""Wires the router: cluster, dispatcher, policies, request service, doors."""

import asyncio
import secrets
from pathlib import Path

from cluster.build import Cluster
from router.dispatch import Dispatcher
from router.journey import Stages
from router.ledger import Ledger
from router.service import RequestService
from scheduler.admission import Admission
from scheduler.registry import placement
from triptych.core.clock import Clock, MonotonicClock
from triptych.core.config import Config
from triptych.core.errors import Unavailable
from triptych.core.ids import SessionId
from triptych.core.lifecycle import Stage
from triptych.inputs.model_card import load_card
from triptych.inputs.prompts import PromptBuilder


class Core:
    """The router without doors: everything between a request and the instances."""

    def __init__(self, dispatcher: Dispatcher, service: RequestService, ledger: Ledger,
                 clock: Clock, secret: bytes) -> None:  # fmt: skip
        self.dispatcher = dispatcher
        self.service = service
        self.ledger = ledger
        self.clock = clock
        self.secret = secret

    async def close(self) -> None:
        """End what runs and every session."""
        await self.service.drain(0.0)
        await self.dispatcher.close()
        self.service.close()


async def start_core(config: Config, cluster: Cluster) -> Core:
    """Open a session to every instance and wait until every stage serves."""
    clock = MonotonicClock()
    secret = cluster.secret
    dispatcher = Dispatcher(cluster, SessionId(f"router-{secrets.token_hex(4)}"))
    cluster.on_change(dispatcher.refresh)
    dispatcher.refresh()
    ledger = Ledger(clock, Path(config.router.ledger) if config.router.ledger else None)
    stages = Stages(dispatcher, placement(config.router.placement), ledger, config.router, clock)
    card = load_card(config.model.path)
    prompts = PromptBuilder(card, config.model.path)
    admission = Admission(config.limits.max_requests, config.limits.max_requests_per_tenant)
    service = RequestService(config, card, prompts, stages, admission, secret)
    await _until_ready(dispatcher, config.cluster.start_timeout_s)
    return Core(dispatcher, service, ledger, clock, secret)


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
