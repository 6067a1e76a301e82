"""What one attempt of a request teaches: how fast its stages were, what the directory was good for,
and how right the predictions were.

Knows the attempt's jobs and the events of them; decides nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from router.knowledge import Knowledge
from triptych.core.clock import Clock
from triptych.core.event import Encoded, Event, Finished, Timing, Tokens
from triptych.core.handoff import EncodeJob, Job, LanguageJob, LendJob
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage
from triptych.core.request import Prompt, Request
from triptych.core.view import ClusterView, Coverage, Expected, Route


class Traveller(Protocol):
    """Of ``journey.Trip``, what is read and written here."""

    request: Request
    prompt: Prompt
    tokens: list[int]
    route: Route | None
    expected: Expected | None
    tally: Counter[str]


class Lesson:
    """Of one attempt, from its route on."""

    def __init__(
        self,
        trip: Traveller,
        knowledge: Knowledge,
        clock: Clock,
        jobs: Sequence[tuple[InstanceId, Job]],
    ) -> None:
        self._trip = trip
        self._knowledge = knowledge
        self._clock = clock
        self._jobs = {job.header.id: job for _, job in jobs}
        self._placed_s = clock.now()
        self._first_s: float | None = None
        self._num_tokens = 0
        self.loan = next((job.header.id for _, job in jobs if isinstance(job, LendJob)), None)

    def routed(self, view: ClusterView, known: Coverage) -> None:
        """The route of the attempt was chosen by what was known."""
        route, tally = self._trip.route, self._trip.tally
        assert route is not None, "the attempt has one"
        held = known.of(route.prefill)
        tally["kv_hits"] += held.kv_tokens[-1] > 0
        tally["item_hits"] += len(held.items)
        tally["encodes_skipped"] += sum(instance is None for instance in route.encode)
        if route.prefix is not None:
            tally["prefix_fetches"] += 1
            tally["prefix_bytes"] += sum(
                (route.prefix.num_tokens - held.kv_tokens[-1])
                // about.kv.block_size
                * about.kv.block_bytes
                for about in (each.description for each in view.instances)
                if about.id == route.prefill and about.kv is not None
            )

    def learn(self, instance: InstanceId, event: Event) -> None:
        """An event of a job of the attempt came."""
        job, latencies = self._jobs.get(event.job), self._knowledge.latencies
        match event, job:
            case Tokens(), _:
                self._num_tokens += len(event.tokens)
                if self._first_s is None:
                    self._first_s = self._clock.now()
            case Encoded(timing=timing), EncodeJob():
                tokens = job.item.num_tokens - timing.cached_tokens
                latencies.learn(Stage.ENCODE, instance, tokens, timing.compute_s)
                latencies.speeds.learn_vision(instance, timing.first_steps)
            case Finished(timing=timing), LanguageJob():
                if job.kv is None:
                    tokens = len(job.prompt) + len(job.generated) - timing.cached_tokens
                    latencies.learn(Stage.PREFILL, instance, tokens, timing.prefill_s)
                self._finished(instance, job, timing)
            case _:
                pass

    def _finished(self, instance: InstanceId, job: LanguageJob, timing: Timing) -> None:
        steps = (timing.first_steps, timing.later_steps)
        self._knowledge.latencies.speeds.learn_language(instance, steps)
        if job.publish is not None or self._first_s is None:
            return
        trip, forecast = self._trip, self._knowledge.forecast
        num_output = len(job.generated) + self._num_tokens
        self._knowledge.answered(trip.request, trip.prompt, num_output)
        expected = trip.expected if trip.route is None else trip.route.expected or trip.expected
        if expected is not None:
            gaps = self._num_tokens - 1
            behind_s = self._clock.now() - self._first_s
            forecast.saw(
                expected, self._first_s - self._placed_s, behind_s / gaps if gaps > 0 else None
            )
