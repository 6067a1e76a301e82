"""Drives real instances through the real router path, without doors, and knows what is right.

``Flow`` is a cluster, a dispatcher and a request service in this process. ``oracle_answer`` says
which tokens a request must give, from the prompt alone.
"""

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Sequence

import msgspec

from cluster.build import Cluster, start_cluster
from cluster.host import Host
from router.answer import Delta, Final
from router.build import Core, start_core
from router.ledger import check as check_ledger
from tests.patience import CALM, PATIENCE_S
from triptych.core.census import Census
from triptych.core.config import Config, load
from triptych.core.hashing import tenant_salt
from triptych.core.ids import RequestId, TenantId
from triptych.core.request import (
    ImagePart,
    Message,
    Picture,
    Request,
    Sampling,
    Slo,
    StopRule,
    TextPart,
)
from triptych.executor.models.oracle_reference import oracle_reference
from triptych.inputs.decode import DecoderPool
from triptych.inputs.oracle_words import PATCH_SIZE

_numbers = itertools.count()
PUBLIC = TenantId("public")


def config(topology: str, *settings: str, model: str = "oracle", backend: str = "local") -> Config:
    """A small configuration for tests."""
    return load(
        None,
        [
            f'model.path="{model}"',
            f'cluster.topology="{topology}"',
            f'cluster.backend="{backend}"',
            *CALM,
            *settings,
        ],
        environment={},
    )


class Flow:
    """A running cluster and router core."""

    def __init__(self, cluster: Cluster, core: Core, config: Config) -> None:
        self.cluster = cluster
        self.core = core
        self.config = config
        self._decoder = DecoderPool(config.limits)

    def request(
        self,
        parts: Sequence[str | Picture],
        *,
        max_tokens: int = 12,
        sampling: Sampling | None = None,
        eos: tuple[int, ...] = (),
        tenant: TenantId = PUBLIC,
        seconds: float = PATIENCE_S,
        num_choices: int = 1,
        strings: tuple[str, ...] = (),
    ) -> Request:
        """A request of one user turn: texts and pictures in the order given."""
        pictures = tuple(part for part in parts if isinstance(part, Picture))
        index = itertools.count()
        words = tuple(
            TextPart(part) if isinstance(part, str) else ImagePart(next(index)) for part in parts
        )
        return Request(
            id=RequestId(f"req-{next(_numbers)}"),
            tenant=tenant,
            messages=(Message("user", words),),
            pictures=pictures,
            sampling=sampling or Sampling(),
            stop=StopRule(max_tokens, eos, strings),
            slo=Slo(),
            deadline_s=self.core.clock.now() + seconds,
            num_choices=num_choices,
        )

    async def tokens(self, request: Request) -> list[int]:
        """Output tokens of a request's only choice."""
        found: list[int] = []
        async for delta in self.stream(request):
            if isinstance(delta, Delta):
                found += [token.id for token in delta.tokens]
        return found

    async def stream(self, request: Request) -> AsyncIterator[Delta | Final]:
        """Deltas and the final word of a request."""
        service = self.core.service
        async with contextlib.aclosing(
            service.generate(request, service.admit(request.tenant))
        ) as answer:
            async for part in answer:
                yield part

    async def census(self, within_s: float = PATIENCE_S) -> list[Census]:
        """The census once it is idle, or as it is after ``within_s``."""
        await self.core.dispatcher.settle()
        end_s = self.core.clock.now() + within_s
        while True:
            rows = await self.cluster.census()
            if all(row.is_idle for row in rows) or self.core.clock.now() > end_s:
                return rows
            await asyncio.sleep(0.02)

    async def assert_idle(self, within_s: float = PATIENCE_S) -> None:
        """Fail, showing the holders, unless nothing is held anywhere."""
        rows = await self.census(within_s)
        assert all(row.is_idle for row in rows), [
            (row.instance, row.held, row.totals) for row in rows if not row.is_idle
        ]
        assert self.core.dispatcher.num_jobs == 0
        assert self.core.ledger.num_open == 0
        for view in self.core.dispatcher.view().instances:
            assert not any(view.num_jobs.values()), view
            assert not any(view.num_tokens.values()), view

    async def oracle_answer(self, request: Request, choice: int = 0) -> list[int]:
        """The only right tokens of ``request`` on the oracle model, found without any block."""
        salt = tenant_salt(self.core.secret, request.tenant)
        prompt = self.core.service.prompts.expand(request.messages, request.pictures, salt)
        pixels = []
        for item, picture in zip(prompt.items, request.pictures, strict=True):
            size = (item.grid[2] * PATCH_SIZE, item.grid[1] * PATCH_SIZE)
            pixels.append(await self._decoder.decode(picture.data, picture.format, *size))
        sampling = msgspec.structs.replace(request.sampling, seed=request.sampling.seed + choice)
        return list(oracle_reference(prompt, pixels, sampling, request.stop, salt))

    async def close(self) -> None:
        """Stop the reference's own decoder."""
        await self._decoder.close()


@contextlib.asynccontextmanager
async def flow(config: Config, host: Host | None = None) -> AsyncIterator[Flow]:
    """Start everything; on leaving, everything must be idle and then gone, and the ledger must
    know exactly one end of every request. ``host`` takes the place of the backend."""
    with tempfile.NamedTemporaryFile("r", suffix=".ledger") as written:
        router = msgspec.structs.replace(config.router, ledger=written.name)
        async with _flow(msgspec.structs.replace(config, router=router), host) as running:
            yield running
        assert check_ledger(written) == []


@contextlib.asynccontextmanager
async def _flow(config: Config, host: Host | None) -> AsyncIterator[Flow]:
    cluster = await start_cluster(config, lambda _: None, host)
    try:
        core = await start_core(config, cluster)
        try:
            running = Flow(cluster, core, config)
            try:
                yield running
                await running.assert_idle()
            finally:
                await running.close()
        finally:
            await core.close()
    finally:
        await cluster.close()
