"""What a host of instances must do, and what describes an instance to it.

``local``, ``process`` and ``ray_actors`` implement it. Knows neither pools nor restarts.
"""

import os
from pathlib import Path
from typing import Protocol

import msgspec

from triptych.core.config import Config
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage
from triptych.core.ports import Instance

_ROOT = Path(__file__).resolve().parents[1]


class InstanceSpec(msgspec.Struct, frozen=True):
    """Everything that one incarnation of an instance is made of. Holds the secret: never logged."""

    id: InstanceId
    role: tuple[Stage, ...]
    config: Config
    secret: bytes


LAST_WORDS_S = 5.0
"""How long routers may take to read what an instance that is gone had sent before."""


class Hosted(Protocol):
    """One running incarnation."""

    pid: int

    @property
    def instance(self) -> Instance:
        """The connection of this process to it."""
        ...

    async def wait(self) -> str:
        """Return when the host knows that the incarnation is dead, and say why."""
        ...

    async def stop(self, drain_s: float) -> None:
        """Let it finish for at most ``drain_s``, then end it. Nothing of it is left after this."""
        ...

    async def kill(self) -> None:
        """Fence it off: when this returns it can neither write nor answer any more."""
        ...


class Host(Protocol):
    """Starts incarnations."""

    async def start(self, spec: InstanceSpec) -> Hosted:
        """Start one and return when it serves. Raises TriptychError when it cannot; a cancelled or
        failed start leaves nothing behind."""
        ...

    async def close(self) -> None:
        """Give back whatever the host itself holds. All incarnations are stopped before."""
        ...


def thread_environment(config: Config) -> dict[str, str]:
    """What keeps the libraries of one instance to its arithmetic threads."""
    threads = str(config.model.threads)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
    }


def child_environment(config: Config) -> dict[str, str]:
    """The environment of a process that hosts an instance."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, **thread_environment(config), "PYTHONPATH": path}
