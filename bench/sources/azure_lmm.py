"""``azure_lmm:PATH``: Azure's multimodal service from its plots (*ModServe*, SoCC 2025).

Reads a digitisation of the published distributions (about 2 % off), not the trace: requests with
pictures and without, their context and output by inverse distribution functions, how many pictures
(the field ``NumImages`` is the square of the count), and each hour's lowest and highest rate of
both kinds. Knows no sizes of pictures, and no order of requests.
"""

import heapq
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from bench.arrivals import Piece, flow, gaps
from bench.sources.pictures import Pictures
from bench.sources.shapes import Coupling, Draw, Pmf, Quantiles, Requests, Shape, amount, steps
from bench.workload import Arrival
from triptych.core.errors import ConfigError

FILE = "digitised_cdfs.json"
NUM_REQUESTS = 1_000_000
"""Of the trace in all; the hours' rates are scaled to it."""
_MINUTE_S, _HOUR_S = 60.0, 3600.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options."""

    path: str
    """The file, or a folder with ``digitised_cdfs.json``."""
    coupling: Coupling = "input"
    """Of pictures, context and output. Contexts contain the pictures, so that a long one with many
    is the likely case; the plots do not say."""
    tokens: str = "629"
    """Visual tokens of a picture, see ``shapes.amount``. The difference between the medians of the
    contexts with and without pictures; the trace does not say."""
    start_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """After the first hour of the plots."""
    arrivals: Literal["poisson", "gamma", "weibull", "uniform"] = "poisson"
    """Gaps inside a minute."""
    cv: float | None = None
    shape: float | None = None
    repeat: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Probability that a picture is one of the last ``recent``. The trace does not say."""
    recent: Annotated[int, msgspec.Meta(ge=1)] = 64


class Hour(msgspec.Struct, frozen=True):
    """Requests per minute: the lowest and the highest of the hour's plotted band."""

    image_mean_min: float
    image_mean_max: float
    text_mean_min: float
    text_mean_max: float


class Envelope(msgspec.Struct, frozen=True):
    """The hours."""

    hours: dict[str, Hour] = msgspec.field(name="hour_offset_from_2024-10-16T00:00Z")


class Plots(msgspec.Struct, frozen=True):
    """The file: percent -> tokens, or count -> percent."""

    image_req_input_tokens: dict[str, float]
    text_req_input_tokens: dict[str, float]
    image_req_output_tokens: dict[str, float]
    text_req_output_tokens: dict[str, float]
    numimages_cdf_if_field_is_n_squared: dict[str, float]
    per_minute_requests_hourly_envelope: Envelope


class Kind(msgspec.Struct, frozen=True):
    """Requests with pictures, or without."""

    shape: Shape
    bands: tuple[tuple[float, float], ...]
    """Lowest and highest rate per second, by hour."""


class AzureLmm:
    """Both kinds together; each has its own load, as ModServe found."""

    def __init__(self, settings: Settings, name: str = "azure_lmm") -> None:
        """Reads the file. Raises ConfigError."""
        self.name = name
        self.settings = settings
        self._gaps = gaps(settings.arrivals, settings.cv, settings.shape)
        self.kinds = read(Path(settings.path), amount(settings.tokens, "tokens"))
        self.num_hours = len(self.kinds["image"].bands)

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload``. A minute's rate is drawn evenly from its hour's band; ``rate`` scales
        them all and is the mean over this stretch. After the last hour the first one follows."""
        streams: dict[str, list[Piece]] = {}
        for name, kind in self.kinds.items():
            source = random.Random(f"azure_lmm {name} rates {seed}")
            streams[name] = list(self._minutes(kind, duration_s, source))
        pieces = [piece for stream in streams.values() for piece in stream]
        total = sum((piece.end_s - piece.start_s) * piece.rate for piece in pieces)
        factor = 1.0 if rate is None else rate * duration_s / total if total else 0.0
        settings, makers, times = self.settings, {}, []
        for name, stream in streams.items():
            clock = random.Random(f"azure_lmm {name} arrivals {seed}")
            times.append(_named(name, flow(_scaled(stream, factor), clock)))
            source = random.Random(f"azure_lmm {name} requests {seed}")
            pictures = Pictures(source, settings.repeat, settings.recent)
            makers[name] = Requests(source, settings.coupling, pictures)
        for at_s, name in heapq.merge(*times):
            yield makers[name].make(at_s, self.kinds[name].shape)

    def _minutes(self, kind: Kind, duration_s: float, source: random.Random) -> Iterator[Piece]:
        start_s = self.settings.start_s
        at, process = start_s, self._gaps
        while at < start_s + duration_s:
            end = min((at // _MINUTE_S + 1) * _MINUTE_S, start_s + duration_s)
            low, high = kind.bands[int(at // _HOUR_S) % self.num_hours]
            rate = low + (high - low) * source.random()
            yield Piece(at - start_s, end - start_s, rate, process)
            at = end


def read(path: Path, tokens: Draw) -> dict[str, Kind]:
    """Requests with pictures (``image``), of ``tokens`` each, and without (``text``). Raises
    ConfigError."""
    file = path / FILE if path.is_dir() else path
    try:
        plots = msgspec.json.decode(file.read_bytes(), type=Plots)
        named = plots.per_minute_requests_hourly_envelope.hours
        hours = [named[key] for key in sorted(named, key=int)]
        bands = {
            "image": [(hour.image_mean_min, hour.image_mean_max) for hour in hours],
            "text": [(hour.text_mean_min, hour.text_mean_max) for hour in hours],
        }
        plotted = sum(low + high for band in bands.values() for low, high in band) / 2 * 60
        scale = NUM_REQUESTS / plotted / _MINUTE_S
        shapes = {
            "image": Shape(
                images=steps(sorted(_numbers(plots.numimages_cdf_if_field_is_n_squared))),
                tokens=tokens,
                text=_quantiles(plots.image_req_input_tokens),
                output=_quantiles(plots.image_req_output_tokens),
                is_total=True,
            ),
            "text": Shape(
                images=Pmf({0: 1.0}),
                tokens=tokens,
                text=_quantiles(plots.text_req_input_tokens),
                output=_quantiles(plots.text_req_output_tokens),
            ),
        }
    except (OSError, ValueError, ZeroDivisionError, ConfigError) as error:
        raise ConfigError(f"azure_lmm: {error}") from None
    return {
        name: Kind(shape, tuple((low * scale, high * scale) for low, high in bands[name]))
        for name, shape in shapes.items()
    }


def _numbers(table: Mapping[str, float]) -> Iterator[tuple[int, float]]:
    return ((int(key), value) for key, value in table.items())


def _quantiles(table: Mapping[str, float]) -> Quantiles:
    return Quantiles(sorted(_numbers(table)))


def _scaled(pieces: list[Piece], factor: float) -> Iterator[Piece]:
    return (Piece(piece.start_s, piece.end_s, piece.rate * factor, piece.gaps) for piece in pieces)


def _named(name: str, times: Iterator[float]) -> Iterator[tuple[float, str]]:
    return ((at_s, name) for at_s in times)
