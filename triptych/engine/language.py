"""The language engine: decides which tokens of which sequences are computed next.

Prefill, chunked prefill, prefix hit, decode, resume and KV from elsewhere are one case: work is
``total - computed``. Batching per iteration after Orca (OSDI 2022, section 3.1). Knows blocks,
sequences and policies; no tensors, no network, no clock.
"""

import math
from collections.abc import Collection
from collections.abc import Sequence as Seq

import msgspec

from triptych.cache.kv import KvCache
from triptych.core.census import Holding
from triptych.core.config import EngineConfig
from triptych.core.errors import InvariantBroken, Overloaded, RequestError
from triptych.core.event import Token
from triptych.core.handoff import FirstToken, LanguageJob
from triptych.core.ids import BlockId, JobId
from triptych.core.plan import Drawn, LanguagePlan, LanguageResult, Segment
from triptych.engine.bounds import check_job
from triptych.engine.flight import Flight
from triptych.engine.outcome import Advanced, Drew, Outcome, Starved
from triptych.engine.patience import Patience
from triptych.engine.policies import Beside, Budget, Moment, Policies, Work
from triptych.engine.room import Elsewhere, Foresee, Room, nowhere
from triptych.engine.roster import Roster
from triptych.engine.runs import extend, most_steps, reserve
from triptych.engine.sequence import Phase, Sequence
from triptych.engine.step import Step
from triptych.engine.turns import Turns


class Load(msgspec.Struct, frozen=True):
    """How much a language engine has to do."""

    waiting: int
    running: int
    """Admitted and not over, those that wait for bytes included."""
    held: int
    """Over, with blocks that somebody outside may still touch."""
    pending_tokens: int
    preemptions: int
    """Since the start."""


class LanguageEngine:
    """Sequences of one language instance. Implements ``engine.step.Engine``.

    Args:
        config: budgets and bounds.
        cache: KV blocks of the instance.
        policies: from ``scheduler.registry``.
        recomputes_items: whether embeddings can be here, so that prompts with items can be
            prefilled, and recomputed after a preemption.
        max_tokens: longest sequence, prompt and output, that the model takes.
        elsewhere: what of a prompt's KV could be brought here instead of being computed.
        patience_s: how long prompts wait for blocks before ``Starved`` is said.
    """

    def __init__(
        self,
        config: EngineConfig,
        cache: KvCache,
        policies: Policies,
        *,
        recomputes_items: bool,
        max_tokens: int,
        elsewhere: Elsewhere = nowhere,
        patience_s: float = math.inf,
    ) -> None:
        self.max_steps = 1
        """Most steps of decodes that the executor takes in a row."""
        self.are_told = False
        """Whether ``advance`` hears of each while the next is computed."""
        self._config = config
        self._cache = cache
        self._policies = policies
        self._recomputes_items = recomputes_items
        self._max_tokens = max_tokens
        self._roster = Roster(cache)
        self._room = Room(
            config,
            cache,
            policies,
            self._roster,
            recomputes_items=recomputes_items,
            elsewhere=elsewhere,
        )
        self._patience = Patience(patience_s)
        self._flight = Flight(self._roster, cache)
        self._num_submitted = 0
        self._turns = Turns(self._roster.known)

    def watch_waiting(self, foresee: Foresee) -> None:
        """``foresee`` hears of each sequence that has to wait for its turn, once."""
        self._room.foresee = foresee

    @property
    def is_idle(self) -> bool:
        """Whether no job is known, nor one that is over but not released."""
        return not self._roster.known

    def submit(self, job: LanguageJob, now: float, *, has_places: bool = True) -> None:
        """Accept a job; idempotent by its id while the job is known. Without ``has_places`` it is
        given no blocks before ``places_ready``.

        Raises RequestError if it can never be served here, Overloaded if too many wait.
        """
        if job.header.id in self._roster.known:
            return
        check_job(job, self._max_tokens, computes_items=self._recomputes_items)
        tokens = [*job.prompt.token_ids, *job.generated]
        table = self._cache.table(job.header.id, job.header.salt, tokens, job.prompt.items)
        boundaries = self._policies.boundaries(job.prompt, self._config.chunk_tokens)
        # Output computed again in chunks would not be bit-equal to output computed when drawn.
        behind = 1 if self._config.deterministic else self._config.chunk_tokens
        sequence = Sequence(job, table, boundaries, behind)
        sequence.overlaps = self._config.overlap
        sequence.has_places = has_places
        if not self._cache.fits(sequence.peak_tokens):
            raise RequestError(
                f"needs KV of {sequence.peak_tokens} tokens, more than there is",
                field="max_tokens",
                status="too_large",
            )
        if len(self._roster.alive()) >= self._config.max_sequences + self._config.max_waiting:
            raise Overloaded(f"{len(self._roster.waiting)} jobs are waiting")
        sequence.arrival = self._num_submitted
        sequence.note_submitted(now)
        self._num_submitted += 1
        self._roster.add(sequence)

    def places_ready(self, job_id: JobId) -> None:
        """The prompt's pictures have places to come to. Places come before blocks, always: one
        that held blocks and waited for places could wait for one that waits for blocks."""
        if sequence := self._roster.get_alive(job_id):
            sequence.has_places = True

    def item_ready(self, job_id: JobId, index: int, blocks: tuple[BlockId, ...]) -> None:
        """The embedding of the prompt's ``index``-th item is in ``blocks`` until the job's end."""
        if sequence := self._roster.get_alive(job_id):
            sequence.item_blocks[index] = blocks

    def arrived(self, job_id: JobId, num_tokens: int) -> None:
        """The KV of the first ``num_tokens`` tokens of an inbound job is there, unverified."""
        sequence = self._roster.get_alive(job_id)
        if sequence is not None and sequence.phase is Phase.ARRIVING:
            sequence.computed = max(sequence.computed, min(num_tokens, sequence.total))

    def arrived_all(self, job_id: JobId, first: FirstToken) -> None:
        """All KV of an inbound job is there and verified; ``first`` was drawn behind it. Nobody
        outside touches the blocks any more."""
        sequence = self._roster.get_alive(job_id)
        if sequence is None:
            return
        if sequence.phase is not Phase.ARRIVING or not sequence.receives:
            raise InvariantBroken(f"{job_id}: KV arrived that was not expected")
        sequence.computed = sequence.total
        self._commit(sequence)
        sequence.tokens.append(first.token)
        sequence.phase, sequence.receives = Phase.RUNNING, False
        sequence.note_came()

    def prefix_arrived(self, job_id: JobId, num_tokens: int) -> int:
        """The KV of the first ``num_tokens`` tokens of a job that awaited some is there and
        verified: as much as could be had, perhaps no more than the hit. The rest is computed.
        Nobody outside touches the blocks any more. How many tokens are built on; behind them blocks
        are written."""
        sequence = self._roster.get_alive(job_id)
        if sequence is None:
            return 0
        if sequence.phase is not Phase.ARRIVING or sequence.receives:
            raise InvariantBroken(f"{job_id}: a prefix arrived that was not expected")
        arrived = self._room.usable(sequence, min(num_tokens, sequence.awaited))
        sequence.computed = max(sequence.computed, arrived)
        sequence.cached_tokens = max(sequence.cached_tokens or 0, sequence.computed)
        self._commit(sequence)
        sequence.phase, sequence.awaited = Phase.RUNNING, 0
        return sequence.computed

    def fail(self, job_id: JobId, code: str, detail: str) -> None:
        """Something that the job needs from outside will not come: it is Dropped."""
        sequence = self._roster.get_alive(job_id)
        if sequence is None:
            return
        if not sequence.table.is_writing:
            self._roster.drop(sequence, code, detail)
        elif sequence.ending is None:
            sequence.ending = (code, detail)

    def prefer(self, jobs: Collection[JobId]) -> None:
        """Jobs that wait for room count as older than all others; any but those are ignored."""
        for sequence in list(self._roster.waiting):
            if sequence.id in jobs:
                self._roster.put_first(sequence)

    def cancel(self, job_id: JobId) -> bool:
        """End the job, wherever it is, and free its blocks; the caller has stopped all outside who
        touch them. Whether it holds nothing now: False if its segment is being executed, then its
        blocks are free after ``apply`` (N8). It is Dropped as cancelled unless it was over."""
        sequence = self._roster.known.get(job_id)
        if sequence is None:
            return True
        sequence.is_abandoned = True
        if sequence.table.is_writing:
            sequence.ending = ("cancelled", "")
            return False
        if sequence.phase is Phase.HELD:
            self._roster.forget(sequence)
        else:
            self._roster.drop(sequence, "cancelled", "")
        return True

    def release(self, job_id: JobId) -> None:
        """Nobody outside touches the blocks of a job that is over: free them. Does nothing for a
        job that is not over, or not known."""
        sequence = self._roster.known.get(job_id)
        if sequence is not None and sequence.phase is Phase.HELD:
            self._roster.forget(sequence)

    def plan(self, now: float) -> Step[LanguagePlan] | None:
        """The next step: expire, grow (which may preempt), admit, batch."""
        if self._flight.step is not None:
            raise InvariantBroken("plan: a step is being executed")
        self._look_over(now)
        is_short = self._room.grow() and self._room.admit(now)
        self._room.look_ahead()
        waiting = tuple(one.id for one in self._roster.waiting if is_short and one.has_places)
        if self._patience.runs_out(waiting, now):
            self._roster.outcomes.append(Starved(waiting))
        chosen = self._batch(now)
        pieces = [(self._roster.known[work.job], work) for work in chosen]
        steps = self._steps(chosen)
        written = steps if self.are_told else 1
        reserve([sequence for sequence, _ in pieces], written, self._cache)
        segments = tuple(sequence.segment(work.start, work.end) for sequence, work in pieces)
        for sequence, work in pieces:
            self._cache.begin_write(sequence.table, work.start, work.end + written - 1)
            sequence.note_started(now)
        outcomes = self.poll()
        if not segments and not outcomes:
            return None
        jobs = frozenset(segment.job for segment in segments)
        step = Step(LanguagePlan(segments, steps), jobs, outcomes, steps > 1)
        self._flight.begin(step if segments else None)
        return step

    def advance(
        self, step: Step[LanguagePlan], drawn: Seq[Drawn], seconds: float, now: float
    ) -> list[Outcome]:
        """Take in one step of a run that goes on. See ``engine.step.Engine``."""
        segments = step.plan.segments
        if step is not self._flight.step or len(drawn) != len(segments):
            raise InvariantBroken("advance: no step of the run being executed")
        self._flight.account(step, seconds, 1)
        for segment, one in zip(segments, drawn, strict=True):
            self._take(segment, (one, ()), now)
        self._flight.num_told += 1
        return self.poll()

    def apply(self, step: Step[LanguagePlan], result: LanguageResult, now: float) -> list[Outcome]:
        """Take in the tokens of an executed step. See ``engine.step.Engine``."""
        segments = step.plan.segments
        asked = [segment.draw is not None for segment in segments]
        if step is not self._flight.step or asked != [drawn is not None for drawn in result.drawn]:
            raise InvariantBroken("apply: the result is not one of the step being executed")
        later = result.later or ((),) * len(segments)
        self._flight.account(step, result.seconds, 1 + len(later[0]))
        self._turns.number += self._flight.num_told + len(later[0])
        self._flight.end_those_over(self._flight.land(step))
        for segment, first, rest in zip(segments, result.drawn, later, strict=True):
            self._take(segment, (first, rest), now)
        return self.poll()

    def execution_failed(self, step: Step[LanguagePlan]) -> list[Outcome]:
        """The step's jobs, and no others, are dropped. What they computed before stays cached."""
        if step is not self._flight.step:
            raise InvariantBroken("execution_failed: the step is not being executed")
        sequences = self._flight.land(step)
        self._flight.end_those_over(sequences)
        for sequence in sequences:
            if self._roster.get_alive(sequence.id):
                self._roster.drop(sequence, "internal", "a step could not be computed")
        return self.poll()

    def poll(self) -> list[Outcome]:
        """Outcomes not told yet. See ``engine.step.Engine``."""
        outcomes, self._roster.outcomes = self._roster.outcomes, []
        return outcomes

    def has_news(self) -> bool:
        """See ``engine.step.Engine``: one that may be admitted, or computed, or has to end, or
        whose waiting was not told."""
        step, is_full = self._flight.step, len(self._roster.running) >= self._config.max_sequences
        return step is None or self._roster.has_news(step.jobs, is_full=is_full)

    def next_deadline(self) -> float | None:
        """The earliest deadline of a job that is not over, or the end of patience."""
        deadlines = [sequence.deadline_s for sequence in self._roster.alive()]
        return min(min(deadlines), self._patience.until_s) if deadlines else None

    def load(self) -> Load:
        """How much there is to do."""
        alive = self._roster.alive()
        return Load(
            waiting=len(self._roster.waiting),
            running=len(self._roster.running),
            held=len(self._roster.known) - len(alive),
            pending_tokens=sum(sequence.pending for sequence in alive),
            preemptions=self._room.num_preempted,
        )

    def beside(self) -> Beside:
        """What it is to pictures that are encoded on the same device."""
        return self._roster.beside()

    def census(self) -> tuple[list[Holding], dict[str, int]]:
        """Jobs and blocks by owner, and the totals of the block pool."""
        jobs = [Holding("job", job_id, 1) for job_id in self._roster.known]
        return jobs + self._cache.holdings(), self._cache.totals()

    def check(self) -> None:
        """Raise InvariantBroken unless sequences, lists and blocks agree."""
        self._cache.check()
        self._roster.check()

    def _look_over(self, now: float) -> None:
        """Drop what is too late; end what was complete when it came; account waiting."""
        for sequence in self._roster.alive():
            if sequence.phase is not Phase.WAITING:
                sequence.note_waiting(now)
            if sequence.deadline_s <= now:
                self._roster.drop(sequence, "deadline_exceeded", "")
            elif sequence.phase is not Phase.ARRIVING and (reason := sequence.finish_reason()):
                self._roster.end(sequence, reason)

    def _batch(self, now: float) -> list[Work]:
        """The pieces of the next step."""
        tokens, alone = self._config.token_budget, self._config.deterministic
        ready: list[Work] = []
        for sequence in self._roster.running:
            if sequence.phase is Phase.RUNNING:
                ready.extend(sequence.ready(1 if alone else tokens))
        if not ready:
            return []
        budget = Budget(tokens, 1 if alone else len(ready), self._turns.passed_over)
        moment = Moment(now, self._turns.number)
        chosen = [ready[index] for index in self._policies.batching(ready, budget, moment)]
        self._turns.took(ready, chosen)
        return chosen

    def _steps(self, chosen: list[Work]) -> int:
        """Steps in a row that ``chosen`` may be executed. Who waits for a place waits until one
        ends; who waits for blocks is looked at after every step."""
        roster = self._roster
        is_full = len(roster.running) >= self._config.max_sequences
        if roster.waiting and not is_full:
            return 1
        return most_steps(
            chosen, roster.running, self._cache, self.max_steps, are_told=self.are_told
        )

    def _take(
        self, segment: Segment, drawn: tuple[Drawn | None, tuple[int, ...]], now: float
    ) -> None:
        """Take in what a step made of a segment, unless its sequence is over, or will be."""
        sequence = self._roster.get_alive(segment.job)
        if sequence is None or sequence.ending is not None or sequence.finished is not None:
            return
        sequence.computed = segment.end + self._flight.num_told
        publishes = sequence.job.publish is not None
        if publishes:
            self._roster.outcomes.append(Advanced(sequence.id, sequence.computed))
        first, later = drawn
        if first is None:
            self._commit(sequence)
            sequence.note_waiting(now)
            return
        token = Token(sequence.num_output, first.token, first.logprob, first.top)
        rest = extend(sequence, first, later, self._cache)
        self._commit(sequence)
        sequence.note_drawn(now, 1 + len(rest))
        self._roster.outcomes.append(Drew(sequence.id, token, rest))
        reason = "prefilled" if publishes else sequence.finish_reason()
        if reason is not None and sequence.table.is_writing:
            sequence.finished = reason
        elif reason is not None:
            self._roster.end(sequence, reason)

    def _commit(self, sequence: Sequence) -> None:
        """Full blocks become findable. In deterministic mode only the prompt's: KV of output was
        computed token by token, and a later prompt computes it in chunks."""
        end = sequence.computed
        if self._config.deterministic:
            end = min(end, sequence.prompt_len)
        self._cache.commit(sequence.table, end)
