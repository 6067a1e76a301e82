"""Watts of a device by what it does, from the power that Splitwise's authors measured on A100s.

Knows shares of the thermal design power by load; other devices are assumed to have the same
shares of theirs. No clock and no energy: whoever knows the seconds multiplies.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import log10
from statistics import median
from typing import Literal

import msgspec

from scheduler.curves import Curve
from scheduler.fitted import FitError, fit_error
from simulator.costs.devices import Device

COMMIT = "Mutinifni/splitwise-sim 8f99e7d, perf_model.csv"
MEASURED = {"llama2-70b": 70e9, "bloom-176b": 176e9}
"""Parameters of the models that were measured."""
ASLEEP = 0.25
"""Average shares below are of runs that mostly waited."""
SHORT = 512
"""Longest prompt of a run whose average power is that of decoding."""
What = Literal["idle", "encode", "prefill", "decode"]


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Of one device; shares are of its thermal design power."""

    idle: float
    compute: Curve
    """By the logarithm (base 10) of tokens in the step times parameters on the device."""
    memory: Curve
    """Decoding one sequence, by parameters on the device: how much of a step is reading them."""
    sequence: float
    """Each further sequence of a decode step."""
    errors: dict[str, FitError] = {}

    def share(self, what: What, amount: int = 0, parameters: float = 0.0) -> float:
        """Of the thermal design power, at most what was seen; see ``watts``."""
        if what == "idle" or amount <= 0:
            return self.idle
        most = self.compute.ys[-1]
        if what == "decode":
            return min(most, self.memory.at(parameters) + self.sequence * (amount - 1))
        return min(most, self.compute.at(log10(amount * parameters)))

    def watts(self, device: Device, what: What, amount: int = 0, parameters: float = 0.0) -> float:
        """Of one device while it computes steps of ``amount`` tokens (``encode``: patches;
        ``decode``: sequences) of a model with ``parameters`` on that device."""
        return device.power_w * self.share(what, amount, parameters)


class Run(msgspec.Struct, frozen=True):
    """One measured run: ``peak`` while it computed the prompts, ``average`` over all of it."""

    parameters: float
    """On each device."""
    prompt: int
    batch: int
    peak: float
    average: float


def read(rows: Iterable[Mapping[str, str]]) -> list[Run]:
    """The rows of perf_model.csv that have a power, one for each setting."""
    found = {
        Run(
            MEASURED[row["model"]] / int(row["tensor_parallel"]),
            int(row["prompt_size"]),
            int(row["batch_size"]),
            float(row["peak_power"]),
            float(row["average_power"]),
        )
        for row in rows
        if row["hardware"] == "a100-80gb" and float(row["average_power"]) > 0.0
    }
    return sorted(found, key=lambda run: (run.parameters, run.prompt, run.batch))


def fit(runs: list[Run]) -> Power:
    """Medians by load, and the slope by sequences that is least wrong in squares."""
    asleep = [run.average for run in runs if run.average < ASLEEP]
    decoding = [run for run in runs if run.average >= ASLEEP and run.prompt <= SHORT]
    alone = defaultdict(list)
    for run in decoding:
        if run.batch == 1:
            alone[run.parameters].append(run.average)
    memory = Curve(tuple(sorted(alone)), tuple(median(alone[each]) for each in sorted(alone)))
    further = [(run.batch - 1, run.average - memory.at(run.parameters)) for run in decoding]
    slope = sum(x * y for x, y in further) / sum(x * x for x, _ in further)
    power = Power(idle=median(asleep), compute=_compute(runs), memory=memory, sequence=slope)
    return msgspec.structs.replace(power, errors=_errors(power, runs, decoding))


def _compute(runs: list[Run]) -> Curve:
    """Means of runs whose load is within a factor of two, never falling."""
    bins = defaultdict(list)
    for run in runs:
        bins[round(_load(run) / log10(2.0))].append(run)
    xs: list[float] = []
    ys: list[float] = []
    for each in sorted(bins):
        xs.append(sum(map(_load, bins[each])) / len(bins[each]))
        share = sum(run.peak for run in bins[each]) / len(bins[each])
        ys.append(max(share, ys[-1] if ys else 0.0))
    return Curve(tuple(xs), tuple(ys))


def _load(run: Run) -> float:
    return log10(run.prompt * run.batch * run.parameters)


def _errors(power: Power, runs: list[Run], decoding: list[Run]) -> dict[str, FitError]:
    prefill = [
        (power.share("prefill", run.prompt * run.batch, run.parameters), run.peak) for run in runs
    ]
    decode = [(power.share("decode", run.batch, run.parameters), run.average) for run in decoding]
    return {"prefill": fit_error(prefill), "decode": fit_error(decode)}
