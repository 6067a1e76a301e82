"""``ledger:PATH``: what a running server was asked, as it was recorded: JSON lines of ``Arrival``.

Knows the format of the file. Texts and pictures in it are numbers, never words or pixels: a
recording shows lengths, times and what was equal to what.
"""

from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import msgspec

from bench.arrivals import replay
from bench.workload import Arrival, Image
from triptych.core.errors import ConfigError
from triptych.core.metrics import SLO_CLASSES


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options."""

    path: str
    start_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """After the first request of the recording."""


class Recorded:
    """A recording, replayed once."""

    def __init__(self, settings: Settings, name: str = "ledger") -> None:
        """Reads the file. Raises ConfigError."""
        self.name = name
        self.settings = settings
        self.requests = read(Path(settings.path))
        self._times = [request.at_s for request in self.requests]

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:  # noqa: ARG002
        """See ``Workload`` and ``arrivals.replay``; ``seed`` changes nothing. The recording does
        not begin anew: all of its pictures would be seen again. Without ``rate`` it ends when it
        ends; raises ConfigError if ``rate`` asks for more requests than it has."""
        first = self._times[0] + self.settings.start_s
        left = sum(at_s >= first for at_s in self._times)
        if rate is not None and round(rate * duration_s) > left:
            raise ConfigError(
                f"rate: the recording has {left:,} requests from start_s on, "
                f"not {round(rate * duration_s):,}"
            )
        for index, at_s in replay(self._times, rate, duration_s, self.settings.start_s):
            if index >= len(self.requests):
                return
            yield msgspec.structs.replace(self.requests[index], at_s=at_s)


def write(path: Path, requests: Iterable[Arrival]) -> int:
    """Writes ``requests`` in order of ``at_s``; says how many. Those of one session keep their
    order where their times are equal. The file appears whole or not at all."""
    ordered = sorted(requests, key=attrgetter("at_s"))
    part = path.with_name(path.name + ".part")
    encode = msgspec.json.Encoder().encode
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as file:
        for request in ordered:
            file.write(encode(request) + b"\n")
    part.replace(path)
    return len(ordered)


def read(path: Path) -> tuple[Arrival, ...]:
    """The requests of a recording. Raises ConfigError that names the line and the field."""
    decode = msgspec.json.Decoder(Arrival).decode
    requests: list[Arrival] = []
    try:
        for line in path.read_bytes().splitlines():
            request = decode(line)
            _check(request, requests[-1].at_s if requests else 0.0)
            requests.append(request)
    except (OSError, ValueError) as error:
        raise ConfigError(f"ledger: line {len(requests) + 1}: {error}") from None
    if not requests:
        raise ConfigError("ledger: the recording is empty")
    return tuple(requests)


def _check(request: Arrival, after_s: float) -> None:
    if not request.at_s >= after_s:
        raise ValueError("at_s: before the line above, or before 0")
    if request.num_output < 1 or request.num_prompt < 1:
        raise ValueError("num_output: at least one token, and one of the prompt")
    if request.slo not in SLO_CLASSES:
        raise ValueError(f"slo: {request.slo!r} is none of {', '.join(SLO_CLASSES)}")
    for part in request.parts:
        lengths = (part.width, part.height) if isinstance(part, Image) else (part.num_tokens,)
        if min(lengths) < 1:
            raise ValueError("parts: lengths and sizes are at least 1")
    if request.after_s is not None and not (request.session and request.after_s >= 0):
        raise ValueError("after_s: at least 0, and of a session")
