"""The vision engine: decides which pictures are encoded next.

Knows keys, embedding blocks and who waits for which picture. Pixels pass through it unseen. Equal
pictures are encoded once, also while the first is being encoded.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from heapq import heappop, heappush
from typing import Any

from triptych.cache.embeddings import EmbeddingCache, Entry, EntryState
from triptych.core.census import Holding
from triptych.core.config import EngineConfig
from triptych.core.errors import InvariantBroken, Overloaded, RequestError
from triptych.core.event import Timing
from triptych.core.handoff import EncodeJob
from triptych.core.ids import JobId
from triptych.core.plan import VisionPlan, VisionResult, VisionTask
from triptych.engine.outcome import Dropped, Embedded, Outcome, Starved
from triptych.engine.patience import Patience
from triptych.engine.picture import Phase, Picture
from triptych.engine.policies import EncodeOrder, Moment, Visual, in_order_of_arrival
from triptych.engine.step import Step
from triptych.engine.tally import Tally


class VisionEngine:
    """Pictures of one encode instance. Implements ``engine.step.Engine``.

    Args:
        config: budgets and bounds.
        cache: embedding blocks of the instance; prefill on the same instance may share it.
        order: who is encoded first; from ``scheduler.registry``.
        split: which part of the device a step may take (``policies.Split``); None: all of it.
        must_wait: whether others on the instance wait for room in the cache, so that no place is
            to be taken now.
        patience_s: how long pictures wait for room before ``Starved`` is said.
    """

    def __init__(
        self,
        config: EngineConfig,
        cache: EmbeddingCache,
        *,
        order: EncodeOrder = in_order_of_arrival,
        split: Callable[[Sequence[Visual], Sequence[Visual], Moment], float] | None = None,
        must_wait: Callable[[], bool] = lambda: False,
        patience_s: float = math.inf,
    ) -> None:
        self._config = config
        self._cache = cache
        self._order = order
        self._split = split
        self._must_wait = must_wait
        self._patience = Patience(patience_s)
        self._known: dict[JobId, Picture] = {}
        """In order of arrival, but for those that are preferred."""
        self._joined: dict[JobId, Picture] = {}
        """Those whose entry they wait for, or write."""
        self._num_held = 0
        self._deadlines: list[tuple[float, int, JobId]] = []
        """A heap of all that are not over, and of some that are: deadline, arrival, job."""
        self._num_submitted = self._turn = 0
        self._outcomes: list[Outcome] = []
        self._step: Step[VisionPlan] | None = None
        self._tally = Tally()
        self._writing: list[tuple[Picture, Entry]] = []
        """Pictures of the step in flight, and the entries that it writes."""

    @property
    def is_idle(self) -> bool:
        """Whether no job is known, nor one that is over but not released."""
        return not self._known

    def join(self, job: EncodeJob, now: float) -> bool:
        """Accept a job whose embedding is here or on its way, so that its picture need not be
        decoded. False changes nothing: ``expect`` the job. Raises Overloaded."""
        if job.header.id in self._known:
            return True
        self._check_load()
        entry = self._cache.acquire(job.item.key, job.header.id)
        if entry is None:
            return False
        if entry.is_unwritten:
            self._cache.release(entry)
            return False
        self._join(self._add(job, now, is_expected=False), entry)
        return True

    def expect(self, job: EncodeJob, now: float) -> None:
        """Accept a job whose picture is being decoded: its turn for a place is that of its arrival,
        so that who prefills and who encodes can agree about an order. ``submit``, ``rely`` or
        ``abandon`` follows. Idempotent by its id while the job is known. Raises RequestError if
        the embedding can never fit, Overloaded if too many wait."""
        if job.header.id in self._known:
            return
        if not self._cache.fits(job.item.num_tokens):
            raise RequestError(
                f"{job.item.num_tokens} visual tokens are more than there is room for",
                field="picture",
                status="too_large",
            )
        self._check_load()
        self._add(job, now, is_expected=True)

    def submit(self, job_id: JobId, pixels: object) -> None:
        """The picture of an expected job. Does nothing for one that is over, or has it."""
        picture = self._known.get(job_id)
        if picture is not None and picture.is_expected:
            picture.is_expected, picture.pixels = False, pixels

    def rely(self, job_id: JobId) -> None:
        """The embedding of an expected job is here or on its way, so that no pixels will come; the
        caller holds its entry meanwhile. Does nothing for a job that is over."""
        picture = self._known.get(job_id)
        if picture is None or not picture.is_expected:
            return
        if picture.entry is None:
            entry = self._cache.acquire(picture.key, job_id)
            if entry is None:
                raise InvariantBroken("rely: nobody holds the embedding")
            self._join(picture, entry)
        picture.is_expected = False

    def abandon(self, job_id: JobId, code: str, detail: str) -> None:
        """The picture of an expected job cannot be decoded: the job is Dropped. Does nothing for
        one that is over."""
        picture = self._known.get(job_id)
        if picture is not None and picture.is_expected:
            self._drop(picture, code, detail)

    def prefer(self, jobs: Collection[JobId]) -> None:
        """Pictures that wait for room go before all others."""
        first = {job: self._known[job] for job in jobs if job in self._known}
        for picture in first.values():
            picture.is_preferred = True
        self._known = first | {job: p for job, p in self._known.items() if job not in first}

    def cancel(self, job_id: JobId) -> bool:
        """End the job, wherever it is, and let go of the embedding; the caller has stopped all
        outside who read it. Whether it holds nothing now: False if it is being encoded. What is
        being encoded is kept for others. The job is Dropped as cancelled unless it was over."""
        picture = self._known.get(job_id)
        if picture is None:
            return True
        if picture.is_writer:
            picture.is_cancelled = True
            return False
        if picture.phase is Phase.HELD:
            self._forget(picture)
        else:
            self._drop(picture, "cancelled", "")
        return True

    def release(self, job_id: JobId) -> None:
        """Nobody outside reads the embedding for this job any more. Does nothing for a job that
        was not Embedded."""
        picture = self._known.get(job_id)
        if picture is not None and picture.phase is Phase.HELD:
            self._forget(picture)

    def plan(self, now: float) -> Step[VisionPlan] | None:
        """The next step: expire, tell who is done, reserve and batch in the policy's order."""
        if self._step is not None:
            raise InvariantBroken("plan: a step is being executed")
        while (picture := self._next_due()) is not None and picture.deadline_s <= now:
            self._drop(picture, "deadline_exceeded", "")
        self._settle(now)
        self._writing = self._batch(now)
        self._settle(now)
        waiting = () if self._writing else self._waiting()
        if self._patience.runs_out(waiting, now):
            self._outcomes.append(Starved(waiting))
        tasks = []
        for picture, entry in self._writing:
            picture.is_writer, picture.started_s = True, now
            tasks.append(VisionTask(picture.id, picture.job.item, picture.pixels, entry.blocks))
        outcomes = self.poll()
        if not tasks and not outcomes:
            return None
        plan = VisionPlan(tuple(tasks), self._share(now))
        step = Step(plan, frozenset(task.job for task in tasks), outcomes)
        self._step = step if tasks else None
        return step

    def apply(self, step: Step[VisionPlan], result: VisionResult, now: float) -> list[Outcome]:
        """Take in the pictures of an executed step. See ``engine.step.Engine``."""
        before = self._tally.now
        seconds = step.plan.on_all_s(result.seconds)
        self._tally.add_vision(step.plan, seconds)
        for picture, entry in self._close(step):
            picture.compute_s, picture.steps = seconds, self._tally.now.since(before)
            self._cache.commit(entry)
            if picture.is_cancelled:
                self._drop(picture, "cancelled", "")
        self._settle(now)
        return self.poll()

    def advance(self, _step: Any, _drawn: Any, _seconds: float, _now: float) -> list[Outcome]:
        """Pictures are encoded in single steps. See ``engine.step.Engine``."""
        raise InvariantBroken("advance: a vision step is never one of several")

    def execution_failed(self, step: Step[VisionPlan]) -> list[Outcome]:
        """The step's jobs are dropped. Others that waited for their embeddings start anew."""
        for picture, entry in self._close(step):
            self._cache.abort(entry)
            code = "cancelled" if picture.is_cancelled else "internal"
            self._drop(picture, code, "" if picture.is_cancelled else "a step failed")
        return self.poll()

    def poll(self) -> list[Outcome]:
        """Outcomes not told yet. See ``engine.step.Engine``."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def has_news(self) -> bool:
        """See ``engine.step.Engine``: steps are never in a row, so it is looked at anyway."""
        return True

    def next_deadline(self) -> float | None:
        """The earliest deadline of a job that is not over, or the end of patience."""
        picture = self._next_due()
        return None if picture is None else min(picture.deadline_s, self._patience.until_s)

    def census(self) -> tuple[list[Holding], dict[str, int]]:
        """Jobs and embedding blocks by owner, and the totals of the embedding pool."""
        jobs = [Holding("job", job_id, 1) for job_id in self._known]
        return jobs + self._cache.holdings(), self._cache.totals()

    def check(self) -> None:
        """Raise InvariantBroken unless jobs, phases and entries agree."""
        self._cache.check()
        phases = Counter(picture.phase for picture in self._known.values())
        if (phases[Phase.JOINED], phases[Phase.HELD]) != (len(self._joined), self._num_held):
            raise InvariantBroken("pictures are counted wrongly")
        for picture in self._known.values():
            entry = picture.entry
            if (entry is None) != (picture.phase is Phase.WAITING):
                raise InvariantBroken(f"{picture.id} has an entry and waits, or the reverse")
            if picture.phase is Phase.HELD and (entry is None or not entry.is_ready):
                raise InvariantBroken(f"{picture.id} offers what is not ready")
            if picture.is_writer and (self._step is None or picture.id not in self._step.jobs):
                raise InvariantBroken(f"{picture.id} writes without a step")

    def _settle(self, now: float) -> None:
        """Tell jobs whose entry became ready; send those whose entry failed back to wait. A job
        that came without pixels ends where nobody is left to write its entry."""
        for picture in list(self._joined.values()):
            entry = picture.entry
            if entry is None:
                raise InvariantBroken(f"{picture.id} joined nothing")
            if entry.is_ready:
                picture.phase, picture.pixels, picture.is_expected = Phase.HELD, None, False
                self._num_held += 1
                del self._joined[picture.id]
                self._outcomes.append(self._embedded(picture, entry, now))
            elif entry.state is EntryState.FAILED:
                self._cache.release(entry)
                picture.entry, picture.phase = None, Phase.WAITING
                del self._joined[picture.id]
                if not picture.can_wait:
                    self._drop(picture, "unavailable", "the picture was not encoded")
            elif entry.is_unwritten and not picture.can_wait:
                self._drop(picture, "unavailable", "the picture was not encoded")

    def _batch(self, now: float) -> list[tuple[Picture, Entry]]:
        """Pictures to encode now, in the policy's order.

        Those whose embedding is here, being written, or has a place already, join it: they take
        no room from one that waits for it. Those that are being decoded get a place all the same.
        """
        writing: list[tuple[Picture, Entry]] = []
        left, has_room = self._config.image_budget_tokens, not self._must_wait()
        if self._config.deterministic:
            left = 0  # each alone: the shape of a step decides the last bits
        for picture, is_first in self._in_order(now):
            entry = picture.entry or self._cache.acquire(picture.key, picture.id)
            is_late = bool(writing) and picture.num_tokens > left and not picture.is_expected
            if entry is None and has_room and not is_late:
                reserved = self._cache.reserve_all([(picture.key, picture.num_tokens)], picture.id)
                entry = reserved[0] if reserved else None
            if entry is None:
                has_room = False  # nobody behind takes the room that this one waits for
                continue
            self._turn += is_first and picture.entry is None
            self._join(picture, entry)
            if picture.is_expected:
                if entry.is_new:  # who has pixels of an equal picture first may write it
                    self._cache.entrust(entry)
                continue
            if entry.is_unwritten and is_late:
                left = 0
            elif self._cache.claim(entry):
                writing.append((picture, entry))
                left -= picture.num_tokens
        return writing

    def _share(self, now: float) -> float:
        if self._split is None or not self._writing:
            return 1.0
        step = [picture for picture, _ in self._writing]
        order = [picture for picture, _ in self._in_order(now) if picture.pixels is not None]
        each = {picture.key: picture for picture in reversed((*step, *order))}  # encoded once
        waiting = [p for p in order if p not in step and each[p.key] is p]
        seen = [[p.waits(p.num_tokens, p.submitted_s) for p in some] for some in (step, waiting)]
        return self._split(seen[0], seen[1], Moment(now, self._turn))

    def _in_order(self, now: float) -> list[tuple[Picture, bool]]:
        """Pictures that are not encoded, nor have a place and wait for their pixels only, and
        whether each is the policy's first; those that are preferred go before all others."""
        pictures = [
            picture
            for picture in self._known.values()
            if picture.pixels is not None or (picture.is_expected and picture.entry is None)
        ]
        if not pictures:
            return []
        left: Counter[str] = Counter()
        since_s: dict[str, float] = {}
        for picture in pictures:
            left[picture.attempt] += picture.num_tokens
            known_s = since_s.get(picture.attempt, picture.submitted_s)
            since_s[picture.attempt] = min(known_s, picture.submitted_s)
        waiting = [
            picture.waits(left[picture.attempt], since_s[picture.attempt]) for picture in pictures
        ]
        order = self._order(waiting, Moment(now, self._turn))
        first = pictures[order[0]]
        in_order = [pictures[index] for index in order]
        in_order.sort(key=lambda picture: not picture.is_preferred)
        return [(picture, picture is first) for picture in in_order]

    def _waiting(self) -> tuple[JobId, ...]:
        """Pictures without a place; if none is written in this step, for want of room."""
        return tuple(p.id for p in self._known.values() if p.phase is Phase.WAITING)

    def _close(self, step: Step[VisionPlan]) -> list[tuple[Picture, Entry]]:
        """The step is over; its pictures and their entries."""
        if step is not self._step:
            raise InvariantBroken("the step is not being executed")
        self._step = None
        closed, self._writing = self._writing, []
        for picture, _ in closed:
            picture.is_writer = False
        return closed

    def _add(self, job: EncodeJob, now: float, *, is_expected: bool) -> Picture:
        picture = Picture(job, now, self._num_submitted, is_expected=is_expected)
        self._known[job.header.id] = picture
        self._num_submitted += 1
        heappush(self._deadlines, (picture.deadline_s, picture.arrival, picture.id))
        if len(self._deadlines) > 2 * len(self._known) + 64:
            alive = self._known.values()
            self._deadlines = sorted((p.deadline_s, p.arrival, p.id) for p in alive)
        return picture

    def _join(self, picture: Picture, entry: Entry) -> None:
        picture.join(entry)
        self._joined[picture.id] = picture

    def _next_due(self) -> Picture | None:
        """The picture with the earliest deadline of those that are not over."""
        while self._deadlines:
            _, arrival, job_id = self._deadlines[0]
            picture = self._known.get(job_id)
            if picture and picture.arrival == arrival and picture.phase is not Phase.HELD:
                return picture
            heappop(self._deadlines)
        return None

    def _check_load(self) -> None:
        alive = len(self._known) - self._num_held
        if alive >= self._config.max_sequences + self._config.max_waiting:
            raise Overloaded(f"{alive} pictures are waiting")

    @staticmethod
    def _embedded(picture: Picture, entry: Entry, now: float) -> Embedded:
        is_cached = picture.started_s is None
        began = now if picture.started_s is None else picture.started_s
        cached_tokens = picture.num_tokens if is_cached else 0
        timing = Timing(
            queue_s=began - picture.submitted_s,
            compute_s=picture.compute_s,
            cached_tokens=cached_tokens,
            first_steps=picture.steps,
        )
        return Embedded(picture.id, entry.blocks, is_cached, timing)

    def _drop(self, picture: Picture, code: str, detail: str) -> None:
        self._outcomes.append(Dropped(picture.id, code, detail))
        self._forget(picture)

    def _forget(self, picture: Picture) -> None:
        del self._known[picture.id]
        self._joined.pop(picture.id, None)
        self._num_held -= picture.phase is Phase.HELD
        if picture.entry is not None:
            self._cache.release(picture.entry)
