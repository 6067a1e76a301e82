"""Executes language plans: keys and values written, tokens drawn.

Knows the order of the two; the model makes logits, the sampler draws.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.core.plan import Draw, Drawn, LanguagePlan, LanguageResult, Segment
from triptych.core.ports import OnDrawn
from triptych.executor.block_store import BlockStore
from triptych.executor.device import computing
from triptych.executor.identity import ByIdentity
from triptych.executor.pace import Pace
from triptych.executor.sampler import draw

OnLayers = Callable[[int], None]
"""Told ``n`` once layers ``[0, n)`` of all segments of a plan are written."""


DrawAll = Callable[[Tensor, Sequence[Draw]], Sequence[Drawn]]


class LanguageModel(Protocol):
    """A model over one KV store and, where pictures are prefilled, one embedding store."""

    vocab_size: int

    def logits(self, plan: LanguagePlan, on_layers: OnLayers | None = None) -> Tensor:
        """Write the plan's keys and values layer by layer, calling ``on_layers`` behind each;
        float32 (draws, vocab_size) of its draws, in order."""
        ...


class LanguageExecutor:
    """Implements ``core.ports.LanguageExecutor``."""

    max_steps = 1 << 20
    tells_steps = True

    def __init__(
        self,
        model: LanguageModel,
        memory: BlockStore,
        embeddings: BlockStore | None,
        draw: DrawAll = draw,
        *,
        frees_lock: bool = False,
        pace: Pace | None = None,
    ) -> None:
        """``draw`` gives a token for each row of logits; see ``executor.sampler``. ``pace`` says
        when a step begins; at once without it."""
        self.frees_lock = frees_lock
        self.memory = memory
        self.embeddings = embeddings
        self._model = model
        self._draw = draw
        self._pace = pace
        self._is_interrupted = False
        self._ends = ByIdentity(lambda blocks: (min(blocks), max(blocks)) if blocks else (-1, -1))

    @torch.inference_mode()
    def execute(
        self,
        plan: LanguagePlan,
        on_layers: OnLayers | None = None,
        on_drawn: OnDrawn | None = None,
    ) -> LanguageResult:
        """Write the KV of every segment to its blocks; draw the tokens asked for. Of a run, steps
        are executed as long as somebody is told of them and nobody interrupts.

        ``on_layers(n)`` is called on this thread behind every layer: layers ``[0, n)`` of all
        segments are in the store then and change no more (on a GPU: in its stream, before whatever
        is enqueued after the call). The step may fail nevertheless.

        Raises InvariantBroken if a plan names blocks or tokens that are not there, if the logits
        are not numbers, or if the step fails; blocks of the plan then hold anything. Raises
        InstanceLost if no other step can follow."""
        began = time.monotonic()
        if not plan.segments:
            return LanguageResult((), 0.0)
        for segment in plan.segments:
            self._check(segment, plan.steps)
        began += self._wait(plan)
        left = plan.steps if on_drawn is not None else 1
        with computing(self.memory.tensor.device, "a language step"), self._settled():
            while True:
                draws = [segment.draw for segment in plan.segments if segment.draw is not None]
                drawn = self._draw(self._model.logits(plan, on_layers), draws)
                left -= 1
                if on_drawn is None or not left or self._is_interrupted:
                    break
                now = time.monotonic()
                on_drawn(drawn, now - began)
                plan = plan.following(drawn)
                began = now + self._wait(plan)
        self._is_interrupted = False
        each = iter(drawn)
        results = tuple(next(each) if s.draw is not None else None for s in plan.segments)
        return LanguageResult(results, time.monotonic() - began)

    def _wait(self, plan: LanguagePlan) -> float:
        """Until the step is to begin; how long that was, in seconds, which are no part of it."""
        if self._pace is None:
            return 0.0
        return self._pace.wait(plan, lambda: self._is_interrupted)

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Nothing of a step is copied, or told of, behind its end: its blocks may be others' then.
        What went wrong there is the step's failure, unless it has another."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.memory.settle()
            raise
        self.memory.settle()

    def interrupt(self) -> None:
        """End the run behind the step in flight, or the next one behind its first."""
        self._is_interrupted = True

    def _check(self, segment: Segment, steps: int) -> None:
        """Ids out of range would kill a whole GPU process instead of one step."""
        tokens, blocks = segment.tokens, segment.blocks
        if not tokens or min(tokens) < 0 or max(tokens) >= self._model.vocab_size:
            raise InvariantBroken("a segment has no tokens, or some outside the vocabulary")
        if len(blocks) * self.memory.layout.block_size < segment.end + steps - 1:
            raise InvariantBroken("a segment's block table does not cover its tokens")
        least, most = self._ends(blocks)
        if least < 0 or most >= self.memory.num_blocks:
            raise InvariantBroken("a segment names a block that is not there")
