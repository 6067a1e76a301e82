"""``synthetic:multi_turn`` and ``synthetic:closed_loop``: requests that wait for an answer.

What comes after an answer has ``after_s``; its ``at_s`` is the earliest moment possible, as if
every answer took no time. Knows no answers: a later turn quotes them by seed and length.
"""

import heapq
import random
from collections.abc import Iterator
from typing import Annotated

import msgspec

from bench.sources.pictures import content
from bench.sources.shapes import Requests, amount
from bench.sources.synthetic import Contents, Settings
from bench.workload import Arrival, Part, Text
from triptych.core.errors import ConfigError

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Turns(Settings, frozen=True, forbid_unknown_fields=True):
    """Options of ``multi_turn``; ``images`` are those of the first turn."""

    images: str = "1"
    text: str = "~64"
    output: str = "~127"
    repeat: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """Probability that a picture is one of the last ``recent`` of all sessions."""
    turns: str = "~4"
    """Of a session."""
    later_images: str = "0.2"
    """Pictures of a later turn."""
    think_s: Seconds = 10.0
    """From an answer's end to the next question: exponential, with this mean."""


class MultiTurn:
    """Conversations. ``rate`` counts turns: sessions begin that often over the mean turns."""

    def __init__(self, settings: Turns, name: str = "multi_turn") -> None:
        """Raises ConfigError."""
        self.name = name
        self.settings = settings
        self._first = settings.shape()
        later = settings.draw("images", settings.later_images)
        self._later = msgspec.structs.replace(self._first, images=later)
        self._turns = amount(settings.turns, "turns")
        if self._turns.at(0.0) < 1:
            raise ConfigError("turns: at least one")
        if settings.phase_s or settings.shift_s:
            raise ConfigError("phase_s: multi_turn has neither phases nor a shift")
        settings.gaps()
        settings.rates()

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload``. A turn that cannot come before ``duration_s`` is left out, so that a
        stretch much shorter than a session has fewer requests than ``rate`` says."""
        settings = self.settings
        clock = random.Random(f"multi_turn arrivals {seed}")
        source = random.Random(f"multi_turn requests {seed}")
        requests = settings.requests(source)
        wanted = (settings.rate if rate is None else rate) / self._turns.mean
        waiting: list[tuple[float, int, int, Arrival]] = []
        for number, start_s in enumerate(settings.times(wanted, duration_s, clock)):
            while waiting and waiting[0][0] <= start_s:
                yield heapq.heappop(waiting)[-1]
            turns = self._session(number, start_s, requests, source)
            for turn, arrival in enumerate(turns):
                if arrival.at_s >= duration_s:
                    break
                heapq.heappush(waiting, (arrival.at_s, number, turn, arrival))
        while waiting:
            yield heapq.heappop(waiting)[-1]

    def _session(
        self, number: int, start_s: float, requests: Requests, source: random.Random
    ) -> list[Arrival]:
        settings = self.settings
        history: list[Part] = list(self._first.prefix)
        found: list[Arrival] = []
        at_s, after_s = start_s, None
        for turn in range(self._turns.at(source.random())):
            if turn:
                after_s = source.expovariate(1 / settings.think_s) if settings.think_s else 0.0
                at_s += after_s
            parts, num_output = requests.turn(self._later if turn else self._first)
            history += parts
            answer = content(source)
            found.append(
                Arrival(
                    at_s,
                    tuple(history),
                    num_output,
                    answer=answer,
                    slo=settings.slo,
                    session=f"session-{number}",
                    after_s=after_s,
                )
            )
            history.append(Text(answer, num_output))
        return found


class Loop(Contents, frozen=True, forbid_unknown_fields=True):
    """Options of ``closed_loop``. The defaults are those of an ablation of overlap in gLLM."""

    images: str = "1-8"
    tokens: str = "1196"
    text: str = "64"
    output: str = "128"
    clients: Annotated[int, msgspec.Meta(ge=1)] = 8
    """Requests at work at a time."""
    requests_: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(default=0, name="requests")
    """In all; 0: six for each client, at least 24 and at most 128."""
    think_s: Seconds = 0.0
    """From an answer's end to the client's next request."""


class ClosedLoop:
    """Clients that ask again when they have their answer: as fast as the server, never faster."""

    def __init__(self, settings: Loop, name: str = "closed_loop") -> None:
        """Raises ConfigError."""
        self.name = name
        self.settings = settings
        self._shape = settings.shape()

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload``. A closed loop has no rate: raises ConfigError if one is given."""
        settings = self.settings
        if rate is not None:
            raise ConfigError("rate: a closed loop has none; its load is the option clients")
        source = random.Random(f"closed_loop {seed}")
        requests = settings.requests(source)
        total = settings.requests_ or min(max(6 * settings.clients, 24), 128)
        for number in range(total):
            turn, client = divmod(number, settings.clients)
            if (at_s := turn * settings.think_s) >= duration_s:
                return
            arrival = requests.make(at_s, self._shape, slo=settings.slo)
            yield msgspec.structs.replace(
                arrival, session=f"client-{client}", after_s=settings.think_s if turn else None
            )
