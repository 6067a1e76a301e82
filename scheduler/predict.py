"""The latency model: what steps take on each instance, learnt from the steps that jobs tell of.

Each place of the topology has a model of its own for vision and for language steps, a restarted
instance inherits it, and one that was never seen is thought as fast as the others. Above a profile
(any ``Costs``) only a factor is learnt; without one, the weights of a linear model. Knows no queue.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from scheduler.costs import Costs
from scheduler.estimate import WEIGHT, Error, Estimate
from triptych.core.event import Steps
from triptych.core.ids import InstanceId

VISION = (2e-3, 2e-5, 1e-9)
"""Prior seconds of a vision step: for itself, per visual token, per square of a picture's."""
LANGUAGE = (5e-3, 5e-5, 1e-9, 1e-4, 1e-8)
"""Prior seconds of a language step: for itself, per token of chunks, per token attended to by
these, per decode, per cached token of decodes. Orders of magnitude of a 7B model on one GPU; what
is unlike them is learnt within some dozen observations."""
FEWEST = 8
"""Observations until a place speaks for itself."""
EPOCH = 32
"""Observations until places that were not seen are thought of anew."""


class _Model(Protocol):
    """A model of steps of one kind."""

    @property
    def count(self) -> int:
        """Observations so far."""
        ...

    @property
    def error(self) -> Error:
        """Of what was predicted before each of them."""
        ...

    def seconds(self, steps: Steps) -> float:
        """What steps of that kind take in all."""
        ...

    def learn(self, steps: Steps) -> None:
        """Steps that were seen."""
        ...


class Learned:
    """Costs of one place. Implements ``scheduler.costs.Costs``."""

    def __init__(self, vision: _Model, language: _Model) -> None:
        self._vision = vision
        self._language = language

    def vision_s(self, pictures: Sequence[int]) -> float:
        """See ``Costs``."""
        squares = sum(size * size for size in pictures)
        return self._vision.seconds(Steps(1, 0.0, sum(pictures), squares)) if pictures else 0.0

    def language_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, context: int
    ) -> float:
        """See ``Costs``."""
        if not chunks and not num_decodes:
            return 0.0
        tokens = sum(length for _, length in chunks)
        pairs = sum(prefix * length + length * (length + 1) // 2 for prefix, length in chunks)
        return self._language.seconds(Steps(1, 0.0, tokens, pairs, num_decodes, context))

    def decode_run_s(self, num_decodes: int, context: int, steps: int) -> float:
        """See ``Costs``. Exact, because a step's seconds are linear in its context."""
        if steps <= 0:
            return 0.0
        ends = (context, context + (steps - 1) * num_decodes)
        return steps * sum(self.language_s((), num_decodes, end) for end in ends) / 2


class Speeds:
    """Models of all places. Changed by ``learn``; everything else is pure.

    ``vision`` and ``language`` are profiles of an instance, where there are any.
    """

    def __init__(self, vision: Costs | None = None, language: Costs | None = None) -> None:
        self._profiles = {True: vision, False: language}
        self._models: dict[tuple[bool, str], _Model] = {}
        self._pooled = {kind: self._fresh(kind) for kind in (True, False)}
        self._chunks: dict[str, tuple[float, float]] = {}
        """By place: tokens of chunks and pairs of them in a step that decodes, running means."""
        self._stamps: dict[str, int] = {}
        self.num_learned = 0
        """Windows of steps so far."""

    def learn_vision(self, instance: InstanceId, steps: Steps) -> None:
        """Steps of a vision engine."""
        self._learn(True, instance, steps)

    def learn_language(self, instance: InstanceId, steps: Iterable[Steps]) -> None:
        """Steps of a language engine, each window by itself."""
        for each in steps:
            self._learn(False, instance, each)
            if each.decodes:
                self._note_chunks(place_of(instance), each)

    def of(self, instance: InstanceId) -> Costs:
        """What steps of an instance take, as far as it is known now."""
        place = place_of(instance)
        return Learned(self._known(True, place), self._known(False, place))

    def stamp(self, place: str) -> int:
        """Changes when ``of`` would say something new of a place (see ``place_of``)."""
        pooled = self._pooled[True].count + self._pooled[False].count
        return self._stamps.get(place) or -(pooled // EPOCH) - 1

    def chunk(self, instance: InstanceId) -> tuple[tuple[int, int], ...]:
        """The chunk ``(prefix, length)`` that a step with decodes had besides, in the mean: what
        prefill takes from the decodes of a mixed instance."""
        tokens, pairs = self._chunks.get(place_of(instance), (0.0, 0.0))
        if tokens < 1.0:
            return ()
        return ((int(pairs / tokens - tokens / 2), round(tokens)),) if pairs > 0 else ()

    def errors(self) -> Mapping[str, Error]:
        """How predictions of steps compared with what was seen, over all places, by kind."""
        return {
            "encode_step": self._pooled[True].error,
            "language_step": self._pooled[False].error,
        }

    def _learn(self, is_vision: bool, instance: InstanceId, steps: Steps) -> None:
        if steps.count <= 0 or steps.seconds <= 0.0:
            return
        key = (is_vision, place_of(instance))
        if key not in self._models:
            self._models[key] = self._fresh(is_vision)
        self.num_learned += 1
        self._models[key].learn(steps)
        self._pooled[is_vision].learn(steps)
        if self._models[key].count >= FEWEST:
            self._stamps[key[1]] = self._stamps.get(key[1], 0) + 1

    def _note_chunks(self, place: str, steps: Steps) -> None:
        tokens, pairs = self._chunks.get(place, (0.0, 0.0))
        seen_tokens, seen_pairs = steps.tokens / steps.count, steps.pairs / steps.count
        self._chunks[place] = (
            tokens + WEIGHT * (seen_tokens - tokens),
            pairs + WEIGHT * (seen_pairs - pairs),
        )

    def _known(self, is_vision: bool, place: str) -> _Model:
        model = self._models.get((is_vision, place))
        return self._pooled[is_vision] if model is None or model.count < FEWEST else model

    def _fresh(self, is_vision: bool) -> _Model:
        profile = self._profiles[is_vision]
        if profile is not None:
            return _Scaled(profile, is_vision=is_vision)
        return _Linear(VISION if is_vision else LANGUAGE)


class _Linear:
    """Seconds as weights times sums; of sums of steps as right as of single ones."""

    def __init__(self, prior: Sequence[float]) -> None:
        self._estimate = Estimate(prior)
        self._size = len(prior)

    @property
    def count(self) -> int:
        return self._estimate.count

    @property
    def error(self) -> Error:
        return self._estimate.error

    def seconds(self, steps: Steps) -> float:
        return self._estimate.seconds(self._features(steps))

    def learn(self, steps: Steps) -> None:
        self._estimate.learn(self._features(steps), steps.seconds)

    def _features(self, steps: Steps) -> tuple[float, ...]:
        every = (steps.count, steps.tokens, steps.pairs, steps.decodes, steps.context)
        return every[: self._size]


class _Scaled:
    """A profile times a factor that is learnt: one for steps with chunks, one for those without.
    Of several steps the profile is asked for their mean."""

    def __init__(self, profile: Costs, *, is_vision: bool) -> None:
        self._profile = profile
        self._is_vision = is_vision
        self._factors = {True: 1.0, False: 1.0}
        self.count = 0
        self.error = Error()

    def seconds(self, steps: Steps) -> float:
        return self._factors[steps.tokens > 0] * self._profiled(steps)

    def learn(self, steps: Steps) -> None:
        profiled, kind = self._profiled(steps), steps.tokens > 0
        if profiled <= 0.0:
            return
        self.error.learn(self._factors[kind] * profiled, steps.seconds)
        self.count += 1
        self._factors[kind] += WEIGHT * (steps.seconds / profiled - self._factors[kind])

    def _profiled(self, steps: Steps) -> float:
        count = steps.count
        tokens = steps.tokens / count
        if self._is_vision:
            if not steps.pairs:
                return 0.0
            number = max(1, round(tokens * steps.tokens / steps.pairs))
            return count * self._profile.vision_s([round(tokens / number)] * number)
        length = round(tokens)
        prefix = max(0, round(steps.pairs / steps.tokens - tokens / 2)) if steps.tokens else 0
        chunks = ((prefix, length),) if length else ()
        decodes, context = round(steps.decodes / count), round(steps.context / count)
        return count * self._profile.language_s(chunks, decodes, context)


def place_of(instance: InstanceId) -> str:
    """``prefill-0`` of ``prefill-0@3``: the place that incarnations follow each other in."""
    return instance.partition("@")[0]
