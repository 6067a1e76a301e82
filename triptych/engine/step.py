"""One step of an engine, and what the pump asks of engines and executors. No behaviour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from triptych.core.ids import JobId
from triptych.core.plan import Drawn
from triptych.engine.outcome import Outcome

PlanT = TypeVar("PlanT")
ResultT_contra = TypeVar("ResultT_contra", contravariant=True)
PlanT_contra = TypeVar("PlanT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)


@dataclass(slots=True, frozen=True)
class Step(Generic[PlanT]):
    """A plan, and what happened without computing anything.

    If ``jobs`` is not empty the plan must be executed and then handed to ``apply`` or to
    ``execution_failed``, before the engine plans again. Otherwise the plan is empty.
    """

    plan: PlanT
    jobs: frozenset[JobId]
    """Jobs that the plan computes for."""
    outcomes: Sequence[Outcome]
    is_run: bool = False
    """Whether the executor may do several steps in a row for it."""


class Engine(Protocol[PlanT, ResultT_contra]):
    """What the pump drives. Synchronous and deterministic; time comes in as ``now``."""

    @property
    def is_idle(self) -> bool:
        """Whether no job is known, nor one that is over but not released."""
        ...

    def plan(self, now: float) -> Step[PlanT] | None:
        """The next step, or None if there is nothing to compute and nothing to tell."""
        ...

    def apply(self, step: Step[PlanT], result: ResultT_contra, now: float) -> list[Outcome]:
        """Take in what the executor computed. Raises InvariantBroken, and changes nothing, if the
        result is not one of this step."""
        ...

    def advance(
        self, step: Step[PlanT], drawn: Sequence[Drawn], seconds: float, now: float
    ) -> list[Outcome]:
        """Take in one of several steps that the executor does in a row for ``step``, which goes on.
        Raises InvariantBroken, and changes nothing, if that cannot be."""
        ...

    def execution_failed(self, step: Step[PlanT]) -> list[Outcome]:
        """The executor raised: the jobs of the step, and no others, are dropped as internal."""
        ...

    def poll(self) -> list[Outcome]:
        """Outcomes that came about between ``plan`` and ``apply``; may be called any time."""
        ...

    def has_news(self) -> bool:
        """Whether ``plan`` would see anything that was not there when the step in flight was
        planned, beside what that step does. Pure."""
        ...

    def next_deadline(self) -> float | None:
        """When ``plan`` must be called even if nothing else happens."""
        ...


class Executor(Protocol[PlanT_contra, ResultT_co]):
    """``core.ports.LanguageExecutor`` or ``VisionExecutor``, as far as the pump cares."""

    def execute(self, plan: PlanT_contra) -> ResultT_co:
        """Compute the plan. Called by one thread at a time."""
        ...
