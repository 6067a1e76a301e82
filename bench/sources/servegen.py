"""``servegen:PATH``: requests of ServeGen's production clients (Xiang et al., *ServeGen*, 2025).

Reads what Alibaba published of each client of a multimodal model: per 600 s the rate and the
spread of gaps, per six hours the distributions of text, pictures and output. The sampler is our
own. Knows that the published distributions are marginal: how they hang together in one request is
``coupling``. The day begins anew after its end.
"""

import heapq
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from bench.arrivals import Gamma, Gaps, Piece, Poisson, Rates, Weibull, flow
from bench.sources.pictures import Pictures
from bench.sources.shapes import Coupling, Pmf, Requests, Shape
from bench.workload import Arrival
from triptych.core.errors import ConfigError
from triptych.core.ids import TenantId

DAY_S = 86_400.0
WINDOW_S = 21_600.0
"""Of one set of distributions."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options."""

    path: str
    """Folder with ``chunk-0-trace.csv`` and its siblings somewhere in it."""
    coupling: Coupling = "independent"
    start_s: Annotated[float, msgspec.Meta(ge=0, lt=DAY_S)] = 0.0
    """Of the day."""
    repeat: Share = 0.0
    """Probability that a picture is one of its client's last ``recent``. The data does not say."""
    recent: Annotated[int, msgspec.Meta(ge=1)] = 64
    is_tenanted: bool = False
    """Each client is a tenant of its own."""


class Client(msgspec.Struct, frozen=True):
    """One of ServeGen's clients."""

    name: str
    rates: Rates
    gaps: tuple[Gaps, ...]
    """One for each step of ``rates``."""
    shapes: tuple[Shape, ...]
    """One for each ``WINDOW_S``."""

    def pieces(self, start_s: float, duration_s: float, factor: float) -> Iterator[Piece]:
        """Its day from ``start_s`` on, ``factor`` times as busy, as bursty as it was."""
        for start, end, index in self.rates.pieces(duration_s, start_s):
            yield Piece(start, end, self.rates.steps[index][1] * factor, self.gaps[index])


class ServeGen:
    """The clients together."""

    def __init__(self, settings: Settings, name: str = "servegen") -> None:
        """Reads the files. Raises ConfigError."""
        self.name = name
        self.settings = settings
        self.clients = read(Path(settings.path))

    def own_rate(self, duration_s: float) -> float:
        """Requests per second of all clients in the stretch that starts at ``start_s``."""
        start_s = self.settings.start_s
        return sum(client.rates.mean(duration_s, start_s) for client in self.clients)

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload``. ``rate`` scales all clients alike; it is the mean over this stretch.
        A client's n-th request is the same at any rate, while it falls into the same six hours."""
        settings = self.settings
        own = self.own_rate(duration_s)
        factor = 1.0 if rate is None else rate / own if own else 0.0
        streams, makers = [], []
        for index, client in enumerate(self.clients):
            clock = random.Random(f"servegen arrivals {client.name} {seed}")
            pieces = client.pieces(settings.start_s, duration_s, factor)
            streams.append(_numbered(index, flow(pieces, clock)))
            source = random.Random(f"servegen requests {client.name} {seed}")
            pictures = Pictures(source, settings.repeat, settings.recent)
            tenant = TenantId(client.name if settings.is_tenanted else "public")
            makers.append((Requests(source, settings.coupling, pictures), client.shapes, tenant))
        for at_s, index in heapq.merge(*streams):
            requests, shapes, tenant = makers[index]
            window = int((settings.start_s + at_s) % DAY_S // WINDOW_S)
            yield requests.make(at_s, shapes[window], tenant)


def read(folder: Path) -> tuple[Client, ...]:
    """The clients of a folder, by number. Raises ConfigError."""
    traces = {_number(path): path for path in folder.rglob("chunk-*-trace.csv")}
    if not traces:
        raise ConfigError(f"servegen: no chunk-*-trace.csv in {folder}")
    return tuple(_client(number, traces[number]) for number in sorted(traces))


def _client(number: int, trace: Path) -> Client:
    dataset = trace.with_name(trace.name.replace("-trace.csv", "-dataset.json"))
    try:
        rows = [line.split(",") for line in trace.read_text().split()]
        steps = tuple((float(row[0]), float(row[1])) for row in rows)
        gaps = tuple(_gaps(row[3], float(row[4])) for row in rows)
        windows = msgspec.json.decode(dataset.read_bytes(), type=dict[str, dict[str, str]])
        shapes = tuple(_shape(windows[f"{start}"]) for start in range(0, int(DAY_S), int(WINDOW_S)))
        return Client(f"client-{number}", Rates(steps, DAY_S), gaps, shapes)
    except (OSError, ValueError, IndexError, KeyError, ConfigError) as error:
        raise ConfigError(f"servegen: client {number}: {error!r}") from None


def _gaps(family: str, shape: float) -> Gaps:
    """By the shape that ServeGen fitted; the mean is the rate's. Silent windows have no family."""
    if family == "Gamma":
        return Gamma(shape)
    return Weibull(shape) if family == "Weibull" else Poisson()


def _shape(window: dict[str, str]) -> Shape:
    return Shape(
        images=_pmf(window["image_count"]),
        tokens=_pmf(window["image_tokens"]),
        text=_pmf(window["text_tokens"]),
        output=_pmf(window["output_tokens"]),
    )


def _pmf(text: str) -> Pmf:
    pairs = (pair.split(":") for pair in text.strip("{}").split(","))
    return Pmf({int(value): float(weight) for value, weight in pairs})


def _number(path: Path) -> int:
    try:
        return int(path.name.split("-")[1])
    except ValueError:
        raise ConfigError(f"servegen: {path.name}: no number") from None


def _numbered(index: int, times: Iterator[float]) -> Iterator[tuple[float, int]]:
    return ((at_s, index) for at_s in times)
