"""Pictures that are late: real encoders that begin each step when a drawn delay is over.

So pictures come in another order than they were sent in, which ``Delays`` writes down.
"""

import dataclasses
import random
import threading
import time
from pathlib import Path

import pytest

from triptych.core.config import Config
from triptych.core.ids import ContentHash
from triptych.core.lifecycle import Role
from triptych.core.plan import VisionPlan, VisionResult
from triptych.executor import build as executor_build
from triptych.executor.build import Executors, build
from triptych.executor.vision import VisionExecutor


class Delays:
    """Seconds drawn from a seed, and the order in which pictures were encoded because of them.

    Once ``pause_after`` pictures are encoded, encoders wait until they are told to go on.
    """

    def __init__(self, seed: int, longest_s: float, *, pause_after: int | None = None) -> None:
        self._rng = random.Random(seed)
        self._longest_s = longest_s
        self._pause_after = pause_after
        self._lock = threading.Lock()
        self._go = threading.Event()
        self.order: list[ContentHash] = []

    @property
    def is_paused(self) -> bool:
        """Whether encoders wait, or will before the next picture."""
        return self._pause_after is not None and len(self.order) >= self._pause_after

    def go_on(self) -> None:
        """No more pauses."""
        self._pause_after = None
        self._go.set()

    def wait(self) -> None:
        """The next delay, and the pause if it is time."""
        with self._lock:
            delay_s = self._rng.uniform(0.0, self._longest_s)
        time.sleep(delay_s)
        if self.is_paused:
            self._go.wait()


class LateVision:
    """A vision executor behind delays. Implements ``core.ports.VisionExecutor``."""

    def __init__(self, inner: VisionExecutor, delays: Delays) -> None:
        self.embeddings = inner.embeddings
        self.encodes_alone, self.nice = inner.encodes_alone, inner.nice
        self._inner = inner
        self._delays = delays

    def execute(self, plan: VisionPlan) -> VisionResult:
        """What the inner one does, later."""
        self._delays.wait()
        result = self._inner.execute(plan)
        self._delays.order += [task.item.key for task in plan.tasks]
        return result


def delay(patch: pytest.MonkeyPatch, delays: Delays) -> None:
    """Every instance that this process builds from now on encodes behind ``delays``."""

    def late(path: str | Path, config: Config, role: Role, fingerprint: str) -> Executors:
        made = build(str(path), config, role, fingerprint)
        if made.vision is None:
            return made
        return dataclasses.replace(made, vision=LateVision(made.vision, delays))

    patch.setattr(executor_build, "build", late)
