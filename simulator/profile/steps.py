"""Times steps on the real executors, as an instance of the configuration has them.

Knows executors and a clock; what is run is ``grid``'s, what is made of it ``scheduler.fit``'s.
"""

import random
import time
from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from bench.workloads import picture
from cluster.host import InstanceSpec
from cluster.machine import ThisMachine
from encoder_service.pictures import Decoders
from scheduler.fit import PRIOR, Step, fit, with_knots
from scheduler.fitted import Fitted
from simulator.profile.grid import Limits, Plans, Shape, shapes
from simulator.profile.tempo import Tempo
from triptych.core.config import Config
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage
from triptych.core.plan import Drawn
from triptych.core.ports import Executors
from triptych.inputs.model_card import ModelCard

Say = Callable[[str, float], None]
"""What is going on, and which share of it all is done (0 to 1)."""

KNOTS = (16.0, 64.0)
"""Tokens in a step at which its costs may bend."""
RUN = 8
"""Decode steps that are timed together, where servers compute them one after the other."""


class Timed(msgspec.Struct, frozen=True):
    """A shape and what its repetitions took."""

    shape: Shape
    seconds: tuple[float, ...]
    """At the machine's usual tempo."""

    @property
    def step(self) -> Step:
        """The median."""
        return self.shape.step(median(self.seconds))

    @property
    def spread(self) -> float:
        """Half of the way from the first to the third quartile, in shares of the median."""
        ordered, last = sorted(self.seconds), len(self.seconds) - 1
        width = ordered[round(0.75 * last)] - ordered[round(0.25 * last)]
        return width / 2 / median(ordered)


class Bench:
    """The executors of one instance of all stages, and a clock that fits them."""

    def __init__(self, config: Config, card: ModelCard, executors: Executors) -> None:
        self.executors = executors
        self.plans = Plans(config, card)
        self._pixels: dict[int, object] = {}
        self._clock = clock(config)

    async def draw(self, decoders: Decoders, some: Sequence[Shape]) -> None:
        """Pixels for the pictures of all shapes."""
        source = random.Random("profile")
        for tokens in sorted({each for shape in some for each in shape.pictures}):
            width, height = self.plans.pixels(tokens)
            png = picture(source, width, height)
            self._pixels[tokens] = await decoders.decode(png, "PNG", width, height)

    def run(self, shape: Shape) -> float:
        """Seconds of one step: of the processor where that is one thread's work, so that others on
        the machine do not count; else of the wall's clock."""
        if shape.pictures:
            vision = self.executors.vision
            assert vision is not None, "an instance of all stages"
            plan = self.plans.vision(shape, [self._pixels[each] for each in shape.pictures])
            began = self._clock()
            vision.execute(plan)
            vision.embeddings.stage([block for task in plan.tasks for block in task.blocks])
            return self._clock() - began
        language = self.executors.language
        assert language is not None, "an instance of all stages"
        steps = RUN if language.tells_steps and not shape.chunks else 1
        run = self.plans.language(shape, steps)
        began = self._clock()
        language.execute(run, None, None if steps == 1 else _nobody)
        return (self._clock() - began) / steps


def _nobody(_drawn: Sequence[Drawn], _seconds: float) -> None:
    """Hears of the steps of a run."""


def clock(config: Config) -> Callable[[], float]:
    """See ``Bench.run``."""
    return time.thread_time if is_one_thread(config) else time.perf_counter


def is_one_thread(config: Config) -> bool:
    """Whether each step is the work of one thread of this machine's processors."""
    return not has_gpu(config) and config.model.threads == 1


def has_gpu(config: Config) -> bool:
    """Whether the configured device is one. Raises ConfigError."""
    from triptych.executor.build import resolve  # torch: only where steps are run

    return resolve(config)[0] != "cpu"


async def measure(
    config: Config, tempo: Tempo, points: int, repetitions: int, say: Say
) -> list[Timed]:
    """Every shape of the grid, ``repetitions`` times and once before, in an order that is drawn
    anew each time: what drifts, drifts for all, and no step finds its own data in a cache."""
    machine = ThisMachine()
    card = machine.card(config)
    spec = InstanceSpec(InstanceId("profile-0@1"), tuple(Stage), config, b"")
    some = shapes(Limits.of(config, card), points)
    executors = await machine.executors(spec, card)
    decoders = machine.decoders(config.limits)
    try:
        bench = Bench(config, card, executors)
        await bench.draw(decoders, some)
        return _repeated(bench, tempo, some, repetitions, say)
    finally:
        await decoders.close()
        executors.close()


def _repeated(
    bench: Bench, tempo: Tempo, some: Sequence[Shape], repetitions: int, say: Say
) -> list[Timed]:
    taken: dict[Shape, list[float]] = {shape: [] for shape in some}
    source, done = random.Random("order"), 0
    for repetition in range(repetitions + 1):
        order = list(taken)
        source.shuffle(order)
        for shape in order:
            seconds = bench.run(shape) / tempo.now()
            if repetition:
                taken[shape].append(seconds)
            done += 1
            say(
                f"steps, round {repetition} of {repetitions}", done / (repetitions + 1) / len(order)
            )
    return [Timed(shape, tuple(seconds)) for shape, seconds in taken.items()]


def fitted(timed: Sequence[Timed]) -> Fitted:
    """Costs that fit the medians."""
    return fit([each.step for each in timed], with_knots(PRIOR, KNOTS))
