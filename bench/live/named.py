"""Workloads by name for the live commands."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.arrivals import poisson
from bench.workload import Arrival, Image, Text, Workload


class Small:
    """A few words and a small picture: enough to see that everything works."""

    name = "small"

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload``."""
        rate = rate or 1.0
        times = poisson(max(1, round(rate * duration_s)), rate, seed)
        for number, at_s in enumerate(time_s for time_s in times if time_s < duration_s):
            picture = Image(1000 * seed + number, 112, 84)
            yield Arrival(at_s, (picture, Text(number, 24)), 12, slo="interactive")


class Recorded:
    """JSON lines of ``Arrival``."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:  # noqa: ARG002
        """See ``Workload``."""
        found = [msgspec.json.decode(line, type=Arrival)
                 for line in self._path.read_bytes().splitlines()]  # fmt: skip
        own = len(found) / max(found[-1].at_s, 1e-9)
        for arrival in found:
            at_s = arrival.at_s * (own / rate if rate else 1.0)
            if at_s < duration_s:
                yield msgspec.structs.replace(arrival, at_s=at_s)


def workload(text: str) -> Workload:
    """The workload that ``text`` names."""
    if text == "small":
        return Small()
    return Recorded(Path(text.removeprefix("ledger:")))
