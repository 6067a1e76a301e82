"""Instances that answer by script, behind a real dispatcher: for what a test cannot make a real
instance do on time (hang, drain, stay silent)."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from triptych.core.event import EventBatch
from triptych.core.handoff import Endpoint, Job, JobHeader, LanguageJob
from triptych.core.ids import InstanceId, JobId, SessionId
from triptych.core.layout import Layout
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.request import Prompt, Sampling, StopRule
from triptych.core.view import ClusterView, Description, InstanceView

SESSION = SessionId("router")


class ScriptedInstance:
    """``on_submit`` is awaited for every job and may raise; ``end`` ends the session."""

    def __init__(self, on_submit: Callable[[], object] = lambda: None) -> None:
        self.on_submit = on_submit
        self.gate = asyncio.Event()
        """Jobs are answered once it is set."""
        self.gate.set()
        self.cancel_gate = asyncio.Event()
        self.cancel_gate.set()
        self.log: list[str] = []
        self.end = asyncio.Event()

    async def open(self, session: SessionId) -> AsyncGenerator[EventBatch, None]:
        yield EventBatch()
        await self.end.wait()

    async def submit(self, job: Job) -> None:
        await self.gate.wait()
        self.on_submit()
        self.log.append(f"submit {job.header.id}")

    async def cancel(self, jobs: Sequence[JobId]) -> None:
        await self.cancel_gate.wait()
        self.log += [f"cancel {job}" for job in jobs]


class ScriptedMembers:
    """A cluster of scripted instances, each of every stage."""

    def __init__(self, **instances: ScriptedInstance) -> None:
        self.instances = {InstanceId(name): each for name, each in instances.items()}
        self.suspected: list[InstanceId] = []

    def view(self) -> ClusterView:
        return ClusterView(
            tuple(InstanceView(describe(name), InstanceState.READY, {}, {})
                  for name in self.instances)
        )  # fmt: skip

    def instance(self, instance: InstanceId) -> ScriptedInstance:
        return self.instances[instance]

    def suspect(self, instance: InstanceId) -> None:
        self.suspected.append(instance)


def describe(name: InstanceId) -> Description:
    return Description(
        id=name,
        role=(Stage.ENCODE, Stage.PREFILL, Stage.DECODE),
        model="m",
        transfer=Endpoint(),
        kv=None,
        embedding=Layout("embedding", "m", "float32", (4, 8), 4),
        num_kv_blocks=1,
        num_embedding_blocks=1,
        max_tokens=100,
        pid=1,
        memory_bytes={},
    )


def job(name: str) -> LanguageJob:
    return LanguageJob(
        header=JobHeader(JobId(name), SESSION, 0, 10.0, b"salt"),
        prompt=Prompt((1, 2, 3)),
        sampling=Sampling(),
        stop=StopRule(4, (), ()),
    )
