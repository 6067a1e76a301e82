"""Costs from the steps that an instance ran: a few coefficients, fitted once or as steps come.

Knows what was in a step and how long it took; not who ran it or where the log is. Minimises
relative errors, so short steps count like long ones, and lets no single step pull far (Huber 1964).
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from functools import reduce

import msgspec

from scheduler.curves import Curve, line
from scheduler.fitted import Attention, DecodeAttention, FitError, Fitted, fit_error
from scheduler.regression import Sums

STRENGTH = 1e-6
"""Of the prior, in shares of the evidence: it decides only what the steps leave open."""
BOUND = 1.5
"""Relative errors beyond so many times the usual one count linearly, not in squares."""
ROUNDS = 10
"""Of fitting and weighing again; each changes less than the one before."""
LEAST_ERROR = 1e-4
"""What the usual error is taken for where all steps fit better."""
FORGET = 0.999
"""What a step still counts after the next one: half after 700."""
EVERY = 16
"""Steps between two solutions: one takes as long as a few dozen predictions."""
RECENT = 512
"""Steps whose predictions the online errors are about."""


class Step(msgspec.Struct, frozen=True):
    """What an instance computed at once, and the seconds it took (> 0)."""

    seconds: float
    chunks: tuple[tuple[int, int], ...] = ()
    """``(prefix, length)`` each."""
    num_decodes: int = 0
    context: int = 0
    """Cached tokens of the decodes, all together."""
    pictures: tuple[int, ...] = ()
    """Visual tokens each."""

    @property
    def part(self) -> str:
        """The row of the errors that it belongs to."""
        kinds = (bool(self.pictures), bool(self.chunks), self.num_decodes > 0)
        names = {
            (True, False, False): "encode",
            (False, True, False): "prefill",
            (False, False, True): "decode",
        }
        return names.get(kinds, "mixed")


class Coefficients(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds per unit. ``knots``: from so many tokens in the step on, each further one costs
    ``token_s`` more; a device that waits for weights first costs little per token, then more."""

    step_s: float = 5e-3
    chunk_step_s: float = 0.0
    """Of a step with a chunk, more, ..."""
    beside_s: float = 0.0
    """... and of each decode in it."""
    sequence_s: float = 1e-5
    pair_s: float = 1e-9
    """Of a query in a chunk and a key that it attends to."""
    context_s: float = 1e-8
    """Per cached token that decodes attend to."""
    vision_step_s: float = 5e-3
    visual_token_s: float = 1e-4
    square_s: float = 1e-9
    """Per squared visual token of a picture."""
    knots: tuple[float, ...] = (0.0,)
    token_s: tuple[float, ...] = (1e-4,)

    def fitted(self, errors: dict[str, FitError] | None = None) -> Fitted:
        """As ``Costs``."""
        return Fitted(
            step_s=self.step_s,
            chunk_step_s=self.chunk_step_s,
            beside_s=self.beside_s,
            sequence_s=self.sequence_s,
            linear=_curve(self.knots, self.token_s),
            chunk_attention=Attention(seconds=line(0.0, self.pair_s)),
            decode_attention=DecodeAttention((1,), (line(0.0, self.context_s),)),
            vision_step_s=self.vision_step_s,
            vision_linear=line(0.0, self.visual_token_s),
            vision_attention=Attention(seconds=line(0.0, self.square_s)),
            errors=errors or {},
        )


PRIOR = Coefficients()
"""A small GPU's order of magnitude."""


def with_knots(prior: Coefficients, knots: Sequence[float]) -> Coefficients:
    """The same costs, free to bend upwards at ``knots`` (rising, above 0)."""
    bends = (*prior.knots, *knots)
    return msgspec.structs.replace(
        prior, knots=bends, token_s=(*prior.token_s, *(0.0 for _ in knots))
    )


def fit(steps: Iterable[Step], prior: Coefficients = PRIOR) -> Fitted:
    """All steps at once. What they leave open (a stage that never ran, two numbers that always
    moved together) stays at, or next to, ``prior``."""
    rows = [(step, features(step, prior.knots)) for step in steps]
    solved, weights = _vector(prior), [1.0] * len(rows)
    for _ in range(ROUNDS):
        sums = Sums(len(solved))
        for (step, row), weight in zip(rows, weights, strict=True):
            sums.add([each / step.seconds for each in row], 1.0, weight)
        solved = sums.solve(_vector(prior), STRENGTH)
        misses = [abs(_dot(row, solved) / step.seconds - 1.0) for step, row in rows]
        usual = max(LEAST_ERROR, sorted(misses)[len(misses) // 2] if misses else 0.0)
        weights = [min(1.0, BOUND * usual / miss) if miss else 1.0 for miss in misses]
    found = _coefficients(solved, prior)
    predicted = [(step.part, _dot(row, solved), step.seconds) for step, row in rows]
    return found.fitted(_errors(predicted))


class Online:
    """Costs as they are learned, newest steps first: exponentially weighted sums, no log.

    Each part fades by its own steps only, so an hour of decodes does not forget what prompts took.
    Changed by ``learn`` only. Errors are of predictions made before the step was learned.
    """

    def __init__(self, prior: Coefficients = PRIOR, forget: float = FORGET) -> None:
        self._prior, self._forget = prior, forget
        self._sums: dict[str, Sums] = {}
        self._solved = _vector(prior)
        self._num_unsolved = 0
        self._usual = 1.0
        """The usual relative error: a mean that no single step moves far."""
        self._predicted: deque[tuple[str, float, float]] = deque(maxlen=RECENT)

    def learn(self, step: Step) -> None:
        """A step was run. Steps of no time are none."""
        if step.seconds <= 0.0:
            return
        row = features(step, self._prior.knots)
        if self._num_unsolved >= min(EVERY, len(self._predicted)):
            self._solve()
        predicted = _dot(row, self._solved)
        self._predicted.append((step.part, predicted, step.seconds))
        miss = abs(predicted / step.seconds - 1.0)
        weight = min(1.0, BOUND * self._usual / miss) if miss else 1.0
        self._usual = max(LEAST_ERROR, 0.95 * self._usual + 0.05 * min(miss, 4.0 * self._usual))
        sums = self._sums.setdefault(step.part, Sums(len(row)))
        sums.fade(self._forget)
        sums.add([each / step.seconds for each in row], 1.0, weight)
        self._num_unsolved += 1

    def coefficients(self) -> Coefficients:
        """As of now."""
        if self._num_unsolved:
            self._solve()
        return _coefficients(self._solved, self._prior)

    def fitted(self) -> Fitted:
        """As of now, with the errors of the newest predictions."""
        return self.coefficients().fitted(_errors(self._predicted))

    def _solve(self) -> None:
        every = reduce(Sums.plus, self._sums.values(), Sums(len(self._solved)))
        self._solved = every.solve(_vector(self._prior), STRENGTH)
        self._num_unsolved = 0


def features(step: Step, knots: Sequence[float]) -> list[float]:
    """What ``step`` has of each coefficient, in the order of ``_vector``."""
    is_language = bool(step.chunks) or step.num_decodes > 0
    tokens = step.num_decodes + sum(length for _, length in step.chunks)
    return [
        float(is_language),
        float(bool(step.chunks)),
        float(step.num_decodes if step.chunks else 0),
        float(len(step.chunks) + step.num_decodes),
        sum(length * (prefix + (length + 1) / 2.0) for prefix, length in step.chunks),
        float(step.context + step.num_decodes),
        float(bool(step.pictures)),
        float(sum(step.pictures)),
        float(sum(each * each for each in step.pictures)),
        *(max(0.0, tokens - knot) for knot in knots),
    ]


def _vector(coefficients: Coefficients) -> list[float]:
    one = coefficients
    language = [one.step_s, one.chunk_step_s, one.beside_s, one.sequence_s, one.pair_s]
    return [
        *language,
        one.context_s,
        one.vision_step_s,
        one.visual_token_s,
        one.square_s,
        *one.token_s,
    ]


def _coefficients(vector: Sequence[float], like: Coefficients) -> Coefficients:
    step, chunk, beside, sequence, pair, context, vision, token, square, *tokens = vector
    return Coefficients(
        step_s=step,
        chunk_step_s=chunk,
        beside_s=beside,
        sequence_s=sequence,
        pair_s=pair,
        context_s=context,
        vision_step_s=vision,
        visual_token_s=token,
        square_s=square,
        knots=like.knots,
        token_s=tuple(tokens),
    )


def _curve(knots: Sequence[float], slopes: Sequence[float]) -> Curve:
    """The sum of ``slopes[i] * max(0, x - knots[i])``."""
    xs = (*knots, knots[-1] + 1.0)
    bends = list(zip(knots, slopes, strict=True))
    return Curve(xs, tuple(sum(each * max(0.0, x - knot) for knot, each in bends) for x in xs))


def _errors(predicted: Iterable[tuple[str, float, float]]) -> dict[str, FitError]:
    parts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for part, fitted, measured in predicted:
        parts[part].append((fitted, measured))
    return {part: fit_error(pairs) for part, pairs in sorted(parts.items())}


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(one * other for one, other in zip(left, right, strict=True))
