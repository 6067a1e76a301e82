"""What requests ask of one kind of instance: seconds of each stage, as means, second moments and
a sample.

Made of requests that are numbers only and of a ``Costs``. Knows no rate limit, no queue, no layout.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from scheduler.costs import Costs
from triptych.core.errors import ConfigError
from triptych.core.metrics import slo_class
from triptych.core.request import Slo


class Shape(msgspec.Struct, frozen=True):
    """One request in numbers."""

    pictures: tuple[int, ...]
    """Visual tokens of each picture that must be encoded: neither its embedding nor its KV is
    cached."""
    prompt: int
    """All tokens of the prompt, visual ones included; >= 1."""
    output: int
    """Tokens of the answer; >= 1."""
    cached: int = 0
    """Leading tokens of the prompt whose KV is cached where it will be prefilled."""
    slo: str = "interactive"
    """A name of ``core.metrics.SLO_CLASSES``."""


class Moments(msgspec.Struct, frozen=True):
    """Of a non-negative quantity."""

    mean: float = 0.0
    second: float = 0.0
    """Mean of the square."""

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation: 0 if constant, 1 if exponential."""
        return max(0.0, self.second / self.mean**2 - 1.0) if self.mean > 0.0 else 0.0


class Service(msgspec.Struct, frozen=True):
    """What one shape of request takes."""

    share: float
    """Of all requests."""
    pictures: tuple[float, ...]
    """Seconds to encode each, alone, longest first."""
    visual: float
    """Visual tokens to encode."""
    prefill_s: float
    """All chunks, alone on the instance."""
    num_chunks: float
    computed: float
    """Tokens that are prefilled: those of the prompt that are not cached."""
    prompt: float
    """Tokens of KV that decode needs."""
    output: float
    slo: Slo

    @property
    def encode_s(self) -> float:
        """Of all its pictures, one behind the other."""
        return sum(self.pictures)


class Demand(msgspec.Struct, frozen=True):
    """A workload as one kind of instance feels it. Means are over requests."""

    rate: float
    """Requests per second offered now; 0 where none is meant."""
    arrival_cv2: float
    """Of the gaps between arrivals: 1 for Poisson, more for bursts."""
    services: tuple[Service, ...]
    """The sample. Its order is that of the shapes, whatever the costs."""
    encode: Moments
    """Seconds of all pictures of a request, requests without pictures included."""
    prefill: Moments
    """Seconds."""
    output: Moments
    """Tokens."""
    context: float
    """Mean tokens of KV of a decoding sequence, over the time that sequences decode."""
    chunk: tuple[int, int]
    """Prefix and length of the mean chunk of a prefill."""
    images: float
    """Pictures to encode per request."""
    text_share: float
    """Of requests without a picture to encode."""

    def mean(self, value: Callable[[Service], float]) -> float:
        """Of any quantity of a request."""
        return sum(each.share * value(each) for each in self.services)


def demand(
    shapes: Sequence[Shape],
    costs: Costs,
    chunk_tokens: int,
    *,
    rate: float = 0.0,
    arrival_cv2: float = 1.0,
    slo_of: Callable[[Shape], Slo] | None = None,
) -> Demand:
    """The demand of a sample of requests under ``costs``, prefilled in chunks of ``chunk_tokens``.

    Equal shapes are counted, not repeated. ``slo_of`` is the class of that name by default.
    Raises ConfigError for an empty sample or a shape that cannot be.
    """
    if not shapes:
        raise ConfigError("shapes: a demand needs at least one request")
    if chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens: {chunk_tokens} must be at least 1")
    counts = Counter(shapes)
    vision: dict[int, float] = {}
    for tokens in {tokens for shape in counts for tokens in shape.pictures}:
        vision[tokens] = costs.vision_s((tokens,))
    services, chunks = [], []
    for shape, number in counts.items():
        _check(shape)
        pieces = cut(shape, chunk_tokens)
        services.append(
            Service(
                share=number / len(shapes),
                pictures=tuple(vision[n] for n in sorted(shape.pictures, reverse=True)),
                visual=sum(shape.pictures),
                prefill_s=sum(costs.language_s((piece,), 0, 0) for piece in pieces),
                num_chunks=len(pieces),
                computed=sum(length for _, length in pieces),
                prompt=shape.prompt,
                output=shape.output,
                slo=slo_of(shape) if slo_of else slo_class(shape.slo, len(shape.pictures)),
            )
        )
        chunks += pieces * number
    prefix = round(sum(before for before, _ in chunks) / len(chunks))
    length = max(1, round(sum(length for _, length in chunks) / len(chunks)))
    return summary(services, rate, arrival_cv2, (prefix, length))


def summary(
    services: Iterable[Service], rate: float, arrival_cv2: float, chunk: tuple[int, int]
) -> Demand:
    """The demand of what is known request by request; shares must sum to 1."""
    all_of = tuple(services)

    def moments(value: Callable[[Service], float]) -> Moments:
        return Moments(
            sum(each.share * value(each) for each in all_of),
            sum(each.share * value(each) ** 2 for each in all_of),
        )

    output = moments(lambda each: each.output)
    held = sum(each.share * each.output * (each.prompt + each.output / 2) for each in all_of)
    return Demand(
        rate=rate,
        arrival_cv2=arrival_cv2,
        services=all_of,
        encode=moments(lambda each: each.encode_s),
        prefill=moments(lambda each: each.prefill_s),
        output=output,
        context=held / output.mean,
        chunk=chunk,
        images=sum(each.share * len(each.pictures) for each in all_of),
        text_share=sum(each.share for each in all_of if not each.pictures),
    )


def scaled(
    known: Demand,
    rate: float,
    *,
    encode: float = 1.0,
    prefill: float = 1.0,
    decode: float = 1.0,
    slower: tuple[float, float] = (1.0, 1.0),
) -> Demand:
    """The same requests at another rate, each with so many times the tokens of a stage.

    How a forecast of tokens per second becomes a demand: the mix of requests is kept, its size is
    not. ``slower`` stretches the seconds of encode and prefill beyond that, for instances that are
    not as quick as their costs say. Factors >= 0; an answer keeps at least one token.
    """
    encode_s, prefill_s = encode * slower[0], prefill * slower[1]
    services = (
        msgspec.structs.replace(
            each,
            pictures=tuple(seconds * encode_s for seconds in each.pictures) if encode > 0.0 else (),
            visual=each.visual * encode,
            prefill_s=each.prefill_s * prefill_s,
            num_chunks=max(1.0, each.num_chunks * prefill),
            computed=each.computed * prefill,
            output=max(1.0, each.output * decode),
        )
        for each in known.services
    )
    return summary(services, rate, known.arrival_cv2, known.chunk)


def cut(shape: Shape, chunk_tokens: int) -> list[tuple[int, int]]:
    """Chunks ``(prefix, length)`` of its prefill. At least one token is computed, however much is
    cached: somebody must say the first token."""
    start = min(shape.cached, shape.prompt - 1)
    return [
        (begin, min(chunk_tokens, shape.prompt - begin))
        for begin in range(start, shape.prompt, chunk_tokens)
    ]


def _check(shape: Shape) -> None:
    if shape.prompt < 1 or shape.output < 1 or shape.cached < 0:
        raise ConfigError(f"shape: {shape} needs a prompt, an answer and no negative number")
    if any(tokens < 1 for tokens in shape.pictures):
        raise ConfigError(f"shape.pictures: {shape.pictures} must all be at least 1 token")
