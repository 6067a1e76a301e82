"""Advice about roles in a running server: a policy is asked now and then, a person reads it.

Nothing is carried out. Knows what the operators' door shows of it.
"""

import asyncio
import logging
from functools import partial
from typing import Any

import msgspec

from router.fleet_watch import FleetWatch
from router.role_advice import Decision, RoleAdviser
from scheduler.costs import Costs
from scheduler.planner.demand import Shape
from scheduler.planner.problem import Footprint, Kind, Problem
from triptych.core import topology
from triptych.core.clock import Clock
from triptych.core.config import Config

log = logging.getLogger(__name__)


class Advising:
    """Of one router."""

    def __init__(
        self, config: Config, watch: FleetWatch, clock: Clock, costs: Costs | None
    ) -> None:
        """Raises ConfigError for a policy that cannot work here."""
        self._settings = config.router
        self._clock = clock
        problem_of = None if costs is None else partial(_problem, config, costs)
        self._adviser = RoleAdviser(config.router.roles, watch, problem_of)

    async def run(self) -> None:
        """Ask every ``router.roles_period_s``, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.roles_period_s)
            try:
                for one in self._ask().advice:
                    log.info("%s advises: %s", self._adviser.name, one.text)
            except Exception:
                # Advice that fails must not be the end of it, nor of anything else.
                log.exception("no advice about roles")

    def page(self) -> dict[str, Any]:
        """What the door shows: the fleet as it is now, the load, what was advised, and what is
        missing for better advice."""
        fleet = self._adviser.look()
        now_s = self._clock.now()
        return {
            "policy": self._adviser.name,
            "period_s": self._settings.roles_period_s,
            "members": [
                {
                    "instance": one.id,
                    "role": topology.name(one.role),
                    "standing": one.standing.value,
                    "waiting": {stage.value: each for stage, each in one.waiting.items()},
                    "running": one.running,
                    "utilisation": one.utilisation,
                    "attainment": one.attainment,
                    "kv_occupancy": one.kv_occupancy,
                    "group": one.group,
                }
                for one in fleet.members
            ],
            "load": {
                **msgspec.to_builtins(msgspec.structs.replace(fleet.load, capacity={})),
                "capacity": {stage.value: able for stage, able in fleet.load.capacity.items()},
            },
            "advice": [
                {"age_s": now_s - said.at_s, **msgspec.to_builtins(said.advice)}
                for said in self._adviser.said
            ],
            "missing": list(self._adviser.missing(fleet)),
        }

    def _ask(self) -> Decision:
        return self._adviser.decide(self._clock.now())


def _problem(config: Config, costs: Costs, shapes: tuple[Shape, ...]) -> Problem:
    """Instances like ours, in tokens of KV instead of bytes: what they have is what fits."""
    room = config.cache.kv_blocks * config.cache.block_size
    return Problem(
        shapes=shapes,
        kinds=(Kind(name="instance", costs=costs, memory_bytes=float(room)),),
        num_gpus=sum(count for _, count in topology.parse(config.cluster.topology)),
        footprint=Footprint(kv_share=1.0),
        chunks=(config.engine.token_budget or config.engine.chunk_tokens,),
        max_decodes=config.engine.max_sequences,
    )
