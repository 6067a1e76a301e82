"""What a plan is made for and of: requests, GPUs and what may be built of them; pools and layouts.

Knows names, counts and bytes. Does not judge.
"""

from collections.abc import Callable, Mapping

import msgspec

from scheduler.costs import Costs
from scheduler.planner.demand import Shape
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role, Stage
from triptych.core.request import Slo
from triptych.core.topology import name

E, P, D = Stage.ENCODE, Stage.PREFILL, Stage.DECODE


class Kind(msgspec.Struct, frozen=True, eq=False):
    """What one instance may run on: a number of GPUs that compute together."""

    name: str
    """Unique in a problem: ``tp2``, ``h200-tp1``."""
    costs: Costs
    """Seconds of a step from its first to its last layer."""
    tp: int = 1
    """GPUs that share each layer."""
    pp: int = 1
    """Groups of layers, each on GPUs of its own; so many steps are under way at once."""
    memory_bytes: float = 141e9
    """Of all its GPUs together."""
    dollars_per_hour: float = 0.0
    """Of all its GPUs together, as is the power."""
    idle_watts: float = 0.0
    busy_watts: float = 0.0

    @property
    def num_gpus(self) -> int:
        """GPUs of one instance."""
        return self.tp * self.pp


class Footprint(msgspec.Struct, frozen=True):
    """Bytes of a model."""

    encoder_bytes: float = 0.0
    language_bytes: float = 0.0
    kv_token_bytes: float = 1.0
    """KV of one token over all layers."""
    embedding_token_bytes: float = 0.0
    """One visual token between encode and prefill."""
    kv_share: float = 0.9
    """Of the memory that weights leave (TriInfer's gamma, MLSys 2026)."""

    def kv_tokens(self, role: Role, kind: Kind) -> float:
        """Tokens of KV that fit beside the weights that ``role`` needs; <= 0 if they do not fit."""
        weights = self.encoder_bytes if E in role else 0.0
        weights += self.language_bytes if role & {P, D} else 0.0
        return self.kv_share * (kind.memory_bytes - weights) / self.kv_token_bytes


class Link(msgspec.Struct, frozen=True):
    """Between two instances."""

    latency_s: float = 0.0
    bytes_per_s: float = 1e12
    exposed: float = 1.0
    """Share of the bytes that nothing overlaps: 1 if all is sent at the end, 1/layers if layer by
    layer."""

    def seconds(self, num_bytes: float) -> float:
        """Until the last byte is there, behind the end of what produced it."""
        return self.latency_s + self.exposed * num_bytes / self.bytes_per_s


class Pool(msgspec.Struct, frozen=True, eq=False):
    """Equal instances."""

    role: Role
    count: int
    kind: Kind

    @property
    def num_gpus(self) -> int:
        """GPUs of all of them."""
        return self.count * self.kind.num_gpus


Layout = tuple[Pool, ...]
"""At most one pool a role; every stage is served."""


def written(layout: Layout) -> str:
    """``E2,P1,D4``, as ``core.topology`` parses it."""
    return ",".join(f"{name(pool.role)}{pool.count}" for pool in layout)


class Problem(msgspec.Struct, frozen=True, eq=False):
    """What is asked of a planner."""

    shapes: tuple[Shape, ...]
    """A sample of the requests. 50 to 200 are enough; every estimate costs time with each."""
    kinds: tuple[Kind, ...]
    num_gpus: int
    footprint: Footprint = Footprint()
    embedding_link: Link = Link()
    kv_link: Link = Link()
    rate: float = 0.0
    """Requests per second that are wanted; 0: as many as possible."""
    level: float = 0.9
    """Share of the requests that must meet their SLO (goodput's attainment)."""
    arrival_cv2: float = 1.0
    """1 for Poisson arrivals, more for bursts (a trace's own)."""
    chunks: tuple[int, ...] = (8192,)
    """Token budgets to choose from, tokens a step."""
    max_decodes: int = 256
    """Sequences that one instance decodes at once, at most."""
    objective: str = "goodput"
    """``goodput`` (requests per second), ``per_dollar`` (requests), ``per_joule`` (requests)."""
    slo_of: Callable[[Shape], Slo] | None = None
    """Bounds of a request; those of its class if None."""
    allowed: Mapping[str, tuple[str, ...]] = {}
    """Names of kinds that a stage's letter may run on; all if not named. A role must satisfy each
    of its stages."""

    def check(self) -> None:
        """Raise ConfigError that names the field and the limit."""
        names = [kind.name for kind in self.kinds]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"kinds: {names} must be at least one, each name once")
        if self.num_gpus < 1:
            raise ConfigError(f"num_gpus: {self.num_gpus} must be at least 1")
        if not 0.0 < self.level < 1.0:
            raise ConfigError(f"level: {self.level} must be between 0 and 1")
        if not self.chunks or min(self.chunks) < 1:
            raise ConfigError(f"chunks: {self.chunks} must be at least one, all at least 1")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective: {self.objective!r} is not one of {OBJECTIVES}")
        if self.objective == "per_dollar" and any(not k.dollars_per_hour for k in self.kinds):
            raise ConfigError("kinds.dollars_per_hour: per_dollar needs the price of every kind")
        if self.objective == "per_joule" and any(not kind.busy_watts for kind in self.kinds):
            raise ConfigError("kinds.busy_watts: per_joule needs the power of every kind")

    def kinds_of(self, role: Role) -> tuple[Kind, ...]:
        """Kinds that an instance of ``role`` may be: allowed for all its stages, weights fit."""
        fitting = [
            kind
            for kind in self.kinds
            if self.footprint.kv_tokens(role, kind) > 0.0
            and all(
                kind.name in self.allowed.get(stage.letter, (kind.name,)) for stage in Stage
                if stage in role
            )
        ]  # fmt: skip
        return tuple(fitting)


OBJECTIVES = ("goodput", "per_dollar", "per_joule")
