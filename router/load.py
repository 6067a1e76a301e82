"""What this router put on one instance, counted as jobs come, draw and go: O(1) for each event.

Knows the jobs' own words only; what they take is the latency model's.
"""

import msgspec

from triptych.core.handoff import EncodeJob, Job, LanguageJob, LendJob
from triptych.core.ids import JobId
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.view import InstanceView, Pending


class _Share:
    """One job's part of its instance's load, as it was added: what is to be taken back."""

    __slots__ = ("pending", "stage", "tokens")

    def __init__(self, stage: Stage, tokens: int, pending: Pending) -> None:
        self.stage = stage
        self.tokens = tokens
        self.pending = pending


class Load:
    """Jobs in flight at one instance."""

    def __init__(self) -> None:
        self._num_jobs = {stage.value: 0 for stage in Stage}
        self._num_tokens = {stage.value: 0 for stage in Stage}
        self._pending = Pending()
        self._shares: dict[JobId, _Share] = {}

    def add(self, job: Job, cached: int) -> None:
        """``job`` was sent; so many of its leading tokens need not be computed. A loan computes
        nothing."""
        if isinstance(job, LendJob):
            return
        stage, tokens = _weight(job)
        share = self._shares[job.header.id] = _Share(stage, tokens, _begin(job, cached))
        self._count(share, +1)
        self._change(share.pending, +1)

    def drew(self, job: Job, num_tokens: int) -> bool:
        """``job`` drew ``num_tokens`` (> 0) more. Whether its prompt is computed since now."""
        share = self._shares.get(job.header.id)
        if share is None or not isinstance(job, LanguageJob):
            return False
        before = share.pending
        if before.prompts:  # its prompt is computed
            share.pending = Pending() if job.publish is not None else _decoding(job)
        if share.pending.decodes:
            now = share.pending
            share.pending = msgspec.structs.replace(
                now,
                context_tokens=now.context_tokens + num_tokens,
                output_tokens=max(0, now.output_tokens - num_tokens),
            )
        self._change(before, -1)
        self._change(share.pending, +1)
        return before.prompts > 0

    def remove(self, job: Job) -> None:
        """``job`` is over. Does nothing for one that was not added, or is removed."""
        share = self._shares.pop(job.header.id, None)
        if share is not None:
            self._count(share, -1)
            self._change(share.pending, -1)

    def view(self, base: InstanceView, state: InstanceState) -> InstanceView:
        """The instance with its load."""
        return InstanceView(
            base.description, state, dict(self._num_jobs), dict(self._num_tokens), self._pending
        )

    def _count(self, share: _Share, sign: int) -> None:
        self._num_jobs[share.stage.value] += sign
        self._num_tokens[share.stage.value] += sign * share.tokens

    def _change(self, part: Pending, sign: int) -> None:
        now = self._pending
        self._pending = Pending(
            now.pictures + sign * part.pictures,
            now.image_tokens + sign * part.image_tokens,
            now.prompts + sign * part.prompts,
            now.prompt_tokens + sign * part.prompt_tokens,
            now.prompt_pairs + sign * part.prompt_pairs,
            now.decodes + sign * part.decodes,
            now.context_tokens + sign * part.context_tokens,
            now.output_tokens + sign * part.output_tokens,
        )


def _begin(job: EncodeJob | LanguageJob, cached: int) -> Pending:
    """What a job that was just sent means for its instance."""
    if isinstance(job, EncodeJob):
        return Pending(pictures=1, image_tokens=job.item.num_tokens)
    if job.kv is not None:
        return _decoding(job)
    total = len(job.prompt) + len(job.generated)
    length = max(1, total - cached)
    pairs = (total - length) * length + length * (length + 1) // 2
    return Pending(prompts=1, prompt_tokens=length, prompt_pairs=pairs)


def _decoding(job: LanguageJob) -> Pending:
    return Pending(
        decodes=1,
        context_tokens=len(job.prompt) + len(job.generated),
        output_tokens=max(0, job.stop.max_tokens - len(job.generated)),
    )


def _weight(job: EncodeJob | LanguageJob) -> tuple[Stage, int]:
    """The stage a job loads, and by how many tokens."""
    if isinstance(job, EncodeJob):
        return Stage.ENCODE, job.item.num_tokens
    tokens = len(job.prompt) + len(job.generated)
    if job.publish is not None:
        return Stage.PREFILL, tokens
    return Stage.DECODE, tokens if job.kv is not None else tokens + job.stop.max_tokens
