"""Bayesian search over plans: layouts, parallelism, budgets and policies at once.

For spaces that cannot be enumerated. A trial is one simulation of one seed; what it is worth is the
goodput found there. The closed form's candidates are tried first, so the search begins where theory
ends. Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) proposes, seeded, so equal
wishes give equal plans. Knows what may be chosen; judges nothing.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from scheduler.planner.candidate import Candidate
from scheduler.planner.search import role_sets
from simulator.scenario import System
from triptych.core.errors import ConfigError
from triptych.core.topology import name, parse

BUDGETS = (1024, 2048, 4096, 8192)
BATCHINGS = ("decode_first", "sarathi", "slack")
PLACEMENTS = ("prefix_aware", "slo", "least_loaded")


class Space(msgspec.Struct, frozen=True):
    """What may be chosen."""

    num_gpus: int
    degrees: tuple[int, ...] = (1,)
    """Tensor-parallel degrees."""
    budgets: tuple[int, ...] = BUDGETS
    batchings: tuple[str, ...] = BATCHINGS
    placements: tuple[str, ...] = PLACEMENTS

    def suggest(self, trial: Any) -> System:
        """The system of a trial. Every point is a layout that uses all GPUs, as far as degrees
        divide them: what is left over widens the last pool."""
        families = {",".join(name(role) for role in roles): roles for roles in role_sets()}
        family = families[trial.suggest_categorical("family", sorted(families))]
        words = [name(role) for role in family if len(role) <= 3]
        degrees = {
            word: trial.suggest_categorical(f"tp_{word}", list(self.degrees)) for word in words
        }
        weights = {word: trial.suggest_float(f"share_{word}", 0.05, 1.0) for word in words}
        counts = shared_out(self.num_gpus, degrees, weights)
        topology = ",".join(f"{word}{counts[word]}" for word in words)
        budget = trial.suggest_categorical("budget", list(self.budgets))
        batching = trial.suggest_categorical("batching", list(self.batchings))
        placement = trial.suggest_categorical("placement", list(self.placements))
        settings = (
            f"engine.chunk_tokens={budget}",
            f"engine.token_budget={budget}",
            f"engine.batching={batching}",
            f"router.placement={placement}",
        )
        tp = {word: degree for word, degree in degrees.items() if degree != 1}
        return System(topology, topology, settings, tp)

    def point(self, candidate: Candidate) -> dict[str, Any]:
        """The parameters that give a candidate of the closed form, or the nearest there are."""
        pools = [(name(role), count) for role, count in parse(candidate.topology)]
        gpus = {word: count * candidate.tp[word] for word, count in pools}
        found: dict[str, Any] = {"family": self._family([word for word, _ in pools])}
        for word, number in gpus.items():
            found[f"tp_{word}"] = candidate.tp[word]
            found[f"share_{word}"] = max(0.05, number / self.num_gpus)
        found["budget"] = min(self.budgets, key=lambda each: abs(each - candidate.chunk_tokens))
        return {**found, "batching": self.batchings[0], "placement": self.placements[0]}

    @staticmethod
    def _family(words: Sequence[str]) -> str:
        known = [",".join(name(role) for role in roles) for roles in role_sets()]
        return next(each for each in known if set(each.split(",")) == set(words))


def shared_out(num_gpus: int, degrees: dict[str, int], weights: dict[str, float]) -> dict[str, int]:
    """Instances by role: at least one each, GPUs in proportion to ``weights``, all of them used as
    far as degrees allow. Raises ConfigError where not even one each fits."""
    counts = dict.fromkeys(degrees, 1)
    left = num_gpus - sum(degrees.values())
    if left < 0:
        raise ConfigError(f"plan: {num_gpus} GPUs are fewer than one instance of each role needs")
    total = sum(weights.values())
    wanted = {word: weights[word] / total * num_gpus for word in degrees}
    while fitting := [word for word, degree in degrees.items() if degree <= left]:
        word = max(fitting, key=lambda each: (wanted[each] - counts[each] * degrees[each], each))
        counts[word] += 1
        left -= degrees[word]
    return counts
