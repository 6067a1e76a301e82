"""Executors that compute nothing: a step takes the time that a cost model says, and draws the
tokens that the workload says.

Implements ``core.ports``' executors and stores. Engines, caches and leases above are the real ones.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from scheduler.costs import Costs
from simulator import texts
from simulator.ahead import Ahead
from simulator.world import Shared, Takes, World
from triptych.core.host_bytes import HostBytes
from triptych.core.ids import JobId
from triptych.core.layout import Layout
from triptych.core.plan import (
    Drawn,
    LanguagePlan,
    LanguageResult,
    Segment,
    VisionPlan,
    VisionResult,
)
from triptych.core.ports import OnDrawn

MAX_STEPS = 4096
"""Of one run."""


class EmptyMemory(HostBytes):
    """Blocks without bytes. Implements ``core.ports.BlockMemory``."""

    fd = -1
    view = memoryview(b"")

    def __init__(self, layout: Layout, num_blocks: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks


class Pace(Protocol):
    """How fast an instance is at the moment, and who hears what it does."""

    @property
    def world(self) -> World:
        """Where time is."""
        ...

    @property
    def cores(self) -> Shared | None:
        """What steps are computed on; None: on a device of the instance's own."""
        ...

    def wait_s(self, num_jobs: int) -> float:
        """What passes between two steps of a run of so many jobs."""
        ...

    def told(self) -> None:
        """A step of a run was told of: there is work for it while the next is computed."""
        ...

    def turned(self, num_jobs: int, num_prompts: int, then: Callable[[], None]) -> None:
        """A step of so many jobs, some of them prompts, or the last one of a run, is over: there is
        work before ``then``, when the next one may begin."""
        ...

    def begin(self, what: str, share: float = 1.0) -> float:
        """A step of ``what`` (see ``bench.run.Busy``), or a run, begins on a part of the device: so
        many times longer than its costs say it takes."""
        ...

    def decodes(self, jobs: Iterable[JobId]) -> None:
        """Sequences of these jobs decode in the step that begins."""
        ...

    def worked(self, what: str, begin_s: float, num_jobs: int, num_tokens: int) -> None:
        """What began then is over."""
        ...

    def drew(self, job: JobId, index: int, times_s: Sequence[float]) -> None:
        """Output tokens from the ``index``-th on of a job's request were drawn."""
        ...


class Computing(msgspec.Struct, frozen=True):
    """Implements ``core.ports.Executors``."""

    language: "SimulatedLanguage | None"
    vision: "SimulatedVision | None"
    embeddings: EmptyMemory | None
    memory_bytes: dict[str, int]
    pids: tuple[int, ...] = ()

    def abandon(self) -> None:
        """There are no other processes."""

    def close(self) -> None:
        """Nothing was taken."""


class _Work(NamedTuple):
    """What a plan makes an instance compute."""

    what: str
    chunks: tuple[tuple[int, int], ...]
    num_decodes: int
    context: int


class SimulatedLanguage:
    """Implements ``core.ports.LanguageExecutor``; ``execute`` gives ``Takes``.

    Runs of equal decode steps pass in one go: where the ``n``-th of them ends is known from the
    cost model, so a run can be cut at any step. Where every token is work for others too, and
    cores may be shared with them, steps pass one by one and are told one by one.
    """

    max_steps = MAX_STEPS
    frees_lock = False

    def __init__(
        self,
        memory: EmptyMemory,
        embeddings: EmptyMemory | None,
        costs: Costs,
        pace: Pace,
        layer_groups: int,
    ) -> None:
        """``layer_groups``: times in a chunk at which its finished layers are told of."""
        self.memory = memory
        self.embeddings = embeddings
        self._costs = costs
        self._pace = pace
        self.tells_steps = pace.cores is not None
        self._layer_groups = layer_groups
        self._run: tuple[Takes, _Work, float] | None = None
        """The run in flight, and by how much it takes longer."""
        self._ahead: Ahead | None = None
        """The one that is told step by step."""

    def execute(
        self,
        plan: LanguagePlan,
        on_layers: Callable[[int], None] | None = None,
        on_drawn: OnDrawn | None = None,
    ) -> Any:
        """The step, or the steps, and the tokens that they draw."""
        work = _work_of(plan)
        factor = self._pace.begin(work.what)
        if work.num_decodes:
            self._pace.decodes(each.job for each in plan.segments if _is_decode(each))
        if on_drawn is not None:
            self._ahead = self._steps(plan, work, factor, on_drawn)
            return self._ahead
        if plan.steps > 1:
            seconds = factor * self._costs.decode_run_s(work.num_decodes, work.context, plan.steps)
        else:
            seconds = factor * self._costs.language_s(work.chunks, work.num_decodes, work.context)
        marks = () if on_layers is None else self._marks(on_layers, seconds)
        takes = Takes(
            seconds,
            lambda: self._result(plan, work, takes, factor),
            marks,
            self._pace.cores,
            partial(self._pace.turned, len(plan.segments), len(work.chunks)),
        )
        self._run = (takes, work, factor) if plan.steps > 1 else None
        return takes

    def interrupt(self) -> None:
        """See ``LanguageExecutor``."""
        if self._ahead is not None:
            self._ahead.interrupt()
        if self._run is None:
            return
        takes, work, factor = self._run
        passed_s = self._pace.world.time() - takes.begin_s
        takes.shorten(self._pace.world, self._end_of(work, factor, passed_s, takes.seconds))
        self._run = None

    def _steps(self, plan: LanguagePlan, work: _Work, factor: float, on_drawn: OnDrawn) -> Ahead:
        """The steps of ``plan`` one after the other. Whatever changes ``factor`` interrupts."""
        pace = self._pace

        def over(index: int, seconds: float, *, is_last: bool) -> LanguageResult | None:
            now_s = pace.world.time()
            drawn = []
            for segment in plan.segments:
                assert segment.draw is not None, "a decode"
                at = segment.draw.position - segment.draw.prompt_len + index
                drawn.append(Drawn(texts.token(segment.draw.sampling.seed, at)))
                pace.drew(segment.job, at, [now_s])
            if is_last:
                self._ahead = None
                num_tokens = plan.num_tokens * (index + 1)
                pace.worked(work.what, ahead.begin_s, len(plan.segments), num_tokens)
                return LanguageResult(tuple(drawn), seconds)
            pace.told()
            on_drawn(drawn, seconds)
            return None

        def takes_s(index: int) -> float:
            context = work.context + index * work.num_decodes
            return factor * self._costs.decode_run_s(work.num_decodes, context, 1)

        cores = pace.cores
        assert cores is not None, "steps are told where they share cores"
        num_jobs = len(plan.segments)
        behind = partial(pace.turned, num_jobs, 0)
        ahead = Ahead(plan.steps, takes_s, over, cores, pace.wait_s(num_jobs), behind)
        return ahead

    def _end_of(self, work: _Work, factor: float, passed_s: float, whole_s: float) -> float:
        """When the step ends that is under way after ``passed_s`` of a run."""
        steps = self._steps_in(work, factor, passed_s, MAX_STEPS)
        return min(whole_s, self._after(work, factor, steps))

    def _steps_in(self, work: _Work, factor: float, seconds: float, most: int) -> int:
        """How many steps of a run begin within ``seconds``, one that ends with them included."""
        least_s = self._after(work, factor, 1)
        most = min(most, int(seconds / max(least_s, 1e-9) * (1 + 1e-9)) + 1)  # none is shorter
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            if self._after(work, factor, middle) >= seconds * (1 - 1e-12):
                high = middle
            else:
                low = middle + 1
        return low

    def _after(self, work: _Work, factor: float, steps: int) -> float:
        return factor * self._costs.decode_run_s(work.num_decodes, work.context, steps)

    def _result(
        self, plan: LanguagePlan, work: _Work, takes: Takes, factor: float
    ) -> LanguageResult:
        """What has been drawn when the work is over, however early that is."""
        self._run, steps, begin_s = None, plan.steps, takes.begin_s
        ends = [begin_s + takes.seconds]
        if steps > 1:
            steps = self._steps_in(work, factor, takes.seconds, steps)
            after = ends_of_run(self._costs, work.num_decodes, work.context, steps)
            ends = [begin_s + factor * each for each in after[:-1]] + ends
        num_tokens = plan.num_tokens + (steps - 1) * work.num_decodes
        self._pace.worked(work.what, begin_s, len(plan.segments), num_tokens)
        drawn: list[Drawn | None] = []
        later: list[tuple[int, ...]] = []
        for segment in plan.segments:
            if segment.draw is None:
                drawn.append(None)
                later.append(())
                continue
            index = segment.draw.position - segment.draw.prompt_len
            seed = segment.draw.sampling.seed
            drawn.append(Drawn(texts.token(seed, index)))
            later.append(texts.tokens(seed, steps - 1, index + 1))
            self._pace.drew(segment.job, index, ends)
        return LanguageResult(tuple(drawn), takes.seconds, tuple(later) if steps > 1 else ())

    def _marks(
        self, on_layers: Callable[[int], None], seconds: float
    ) -> tuple[tuple[float, Callable[[], None]], ...]:
        """When groups of layers are there, all of them with the end of the step."""
        num_layers = self.memory.layout.num_layers
        groups = min(self._layer_groups, num_layers)
        ends = [-(-num_layers * index // groups) for index in range(1, groups)]
        marks = tuple((seconds * end / num_layers, partial(on_layers, end)) for end in ends)
        return (*marks, (seconds, partial(on_layers, num_layers)))


class SimulatedVision:
    """Implements ``core.ports.VisionExecutor``; ``execute`` gives ``Takes``."""

    nice = 0

    def __init__(
        self, embeddings: EmptyMemory, costs: Costs, pace: Pace, *, encodes_alone: bool = False
    ) -> None:
        self.embeddings = embeddings
        self.encodes_alone = encodes_alone
        self._costs = costs
        self._pace = pace

    def execute(self, plan: VisionPlan) -> Any:
        """The step's time."""
        sizes = [task.item.num_tokens for task in plan.tasks]
        seconds = self._pace.begin("encode", plan.share) * self._costs.vision_s(sizes)

        def result() -> VisionResult:
            self._pace.worked("encode", takes.begin_s, len(sizes), sum(sizes))
            return VisionResult(takes.seconds)

        behind = partial(self._pace.turned, len(sizes), 0)
        takes = Takes(seconds, result, cores=self._pace.cores, behind=behind)
        return takes


def ends_of_run(costs: Costs, num_decodes: int, context: int, steps: int) -> list[float]:
    """When each step of a run ends, from its beginning on. Cost models are straight lines by
    context over long stretches: of each only the ends and the sum are asked for."""
    first_s = costs.language_s((), num_decodes, context)
    if steps == 1:
        return [first_s]
    last_s = costs.language_s((), num_decodes, context + (steps - 1) * num_decodes)
    whole_s = costs.decode_run_s(num_decodes, context, steps)
    if steps == 2 or abs(steps * (first_s + last_s) / 2 - whole_s) <= 1e-12 * whole_s:
        slope_s = (last_s - first_s) / (steps - 1)
        return [n * (first_s + slope_s * (n - 1) / 2) for n in range(1, steps + 1)]
    half = steps // 2
    ends = ends_of_run(costs, num_decodes, context, half)
    rest = ends_of_run(costs, num_decodes, context + half * num_decodes, steps - half)
    return ends + [ends[-1] + each for each in rest]


def _is_decode(segment: Segment) -> bool:
    return segment.draw is not None and segment.end > segment.draw.prompt_len


def _work_of(plan: LanguagePlan) -> _Work:
    chunks, num_decodes, context = [], 0, 0
    for segment in plan.segments:
        if _is_decode(segment):
            num_decodes += 1
            context += segment.start
        else:
            chunks.append((segment.start, len(segment.tokens)))
    what = "mixed" if chunks and num_decodes else "prefill" if chunks else "decode"
    return _Work(what, tuple(chunks), num_decodes, context)
