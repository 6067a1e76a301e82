"""What takes part: something that starts, answers requests, and stops; with the settings to try.

One that serves HTTP is asked by the live client (``bench.live``), whoever wrote the server. Knows
no command lines: those are in ``servers`` and ``vllm``.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from bench.client import Outcome, Target
from bench.live.drive import Pace, drive
from bench.live.turns import Album, Composer, Wording
from bench.peers.sender import PeerSender
from bench.run import Row
from bench.systems import SystemFailed
from bench.workload import Arrival

GATHERED = 8
"""Tokens of an answer that are told together, where a system can be asked for it: fewer messages
for everybody's processor, larger steps for a reader's eye."""
AT_ONCE = 9
"""Sequences that a system works on at once, where it can be told so: others' first tokens come
later, and all tokens behind them sooner."""
_NO_END_S = 86_400.0
"""A closed loop ends when its requests have ended."""


class Asked(NamedTuple):
    """What came of one closed loop."""

    outcomes: tuple[Outcome, ...]
    texts: Mapping[str, str]
    """Answers by question; empty where they are not told."""
    late_p99_s: float
    """Of the client."""


class Contestant(Protocol):
    """One system with one setting."""

    name: str
    told: Mapping[str, object]
    """What a reader needs to start it again: command lines, environment."""

    async def start(self) -> None:
        """Return when it answers. Raises SystemFailed."""
        ...

    async def ask(self, arrivals: Sequence[Arrival], timeout_s: float) -> Asked:
        """Clients that ask again when they have their answer."""
        ...

    async def stop(self) -> None:
        """End every process of it. Safe at any time."""
        ...


class Entrant(NamedTuple):
    """A system, and the settings of which the best is measured."""

    name: str
    settings: Mapping[str, Callable[[], Contestant]]
    versions: Mapping[str, str] = {}

    def first(self) -> "Entrant":
        """With its first setting only."""
        name = next(iter(self.settings))
        return self._replace(settings={name: self.settings[name]})


class OverHttp:
    """What is common to servers: how they are asked. Subclasses start and stop."""

    left_out: tuple[str, ...] = ()
    """Fields of a request that the server refuses."""

    def __init__(self) -> None:
        self._target: Target | None = None

    async def ask(self, arrivals: Sequence[Arrival], timeout_s: float) -> Asked:
        """See ``Contestant``. Every server gets the same words: nothing is calibrated."""
        if self._target is None:
            raise SystemFailed("it was not started")
        sender = PeerSender(self._target, self.left_out)
        await sender.start()
        composer = Composer(Wording(), Album())
        for arrival in arrivals:
            composer.draw(arrival)  # before the clock runs: a picture takes milliseconds
        driven = await drive(sender, composer, arrivals, Pace(_NO_END_S, timeout_s))
        wanted = {f"r{number}": arrival.num_output for number, arrival in enumerate(arrivals)}
        outcomes = tuple(_outcome(row, wanted[row.id]) for row in driven.rows)
        return Asked(outcomes, sender.texts, driven.late_p99_s)


def _outcome(row: Row, num_output: int) -> Outcome:
    """An answer of another length is no equal work, and does not count as one."""
    status, detail = row.status, row.code
    if status == "ok" and len(row.token_times_s) != num_output:
        status, detail = "failed", f"{len(row.token_times_s)} tokens instead of {num_output}"
    return Outcome(row.arrival_s, row.token_times_s, row.end_s, status, detail)


_VERSIONS = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


async def versions(python: str, *names: str) -> dict[str, str]:
    """Of those distributions that an interpreter has. Raises SystemFailed if it does not run."""
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-c", _VERSIONS, *names,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, env=foreign(),
        )  # fmt: skip
    except OSError as error:
        raise SystemFailed(f"interpreter: {python}: {error}") from error
    said, _ = await process.communicate()
    if process.returncode != 0:
        raise SystemFailed(f"interpreter: {python} ended with {process.returncode}")
    return msgspec.json.decode(said, type=dict[str, str])


def foreign() -> dict[str, str]:
    """Our environment for another interpreter, which must not see our packages."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in hidden}


def threads(count: int) -> str:
    """A setting's word."""
    return f"{count} thread" + "s" * (count > 1)


def at_once(count: int) -> str:
    """A setting's word."""
    return f"{count} at once"


def told(count: int) -> str:
    """A setting's word."""
    return f"{count} tokens a message"
