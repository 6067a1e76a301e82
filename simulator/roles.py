"""Roles over time in a simulated run: what the policy says is done. Also samples queues.

The policy, the fleet that it sees and the switch itself are the server's. Knows no policy.
"""

import asyncio

from router.fleet_watch import FleetWatch
from router.role_advice import RoleAdviser
from scheduler.planner.demand import Shape
from scheduler.planner.problem import Footprint, Kind, Link, Problem
from scheduler.roles.fleet import Switch
from simulator.happenings import Happenings
from simulator.hardware import Hardware
from simulator.recorder import Recorder, place_of
from simulator.world import World
from triptych.core import topology
from triptych.core.config import Config
from triptych.core.lifecycle import Role


class RolesOverTime:
    """Of one run."""

    def __init__(
        self, world: World, adviser: RoleAdviser, watch: FleetWatch, happenings: Happenings
    ) -> None:
        self._world = world
        self._adviser = adviser
        self._watch = watch
        self._happenings = happenings
        self._moving: dict[str, Role] = {}
        self._switching: set[asyncio.Task[None]] = set()

    async def run(self, period_s: float) -> None:
        """Ask every ``period_s`` and do what is said, until cancelled."""
        try:
            while True:
                await asyncio.sleep(period_s)
                decision = self._adviser.decide(self._world.time(), self._moving)
                roles = {one.id: one.role for one in decision.fleet.members}
                for switch in decision.switches:
                    self._switch(switch, roles[switch.instance])
        finally:
            for task in self._switching:
                task.cancel()

    def _switch(self, switch: Switch, before: Role) -> None:
        place = place_of(switch.instance)
        if switch.group:
            self._watch.groups[place] = switch.group
        if switch.role != before:
            self._moving[place] = switch.role
            task = asyncio.create_task(self._assign(place, switch.role))
            self._switching.add(task)
            task.add_done_callback(self._switching.discard)

    async def _assign(self, place: str, role: Role) -> None:
        try:
            await self._happenings.assign(place, topology.name(role))
        finally:
            del self._moving[place]


async def sample_queues(recorder: Recorder, watch: FleetWatch, period_s: float) -> None:
    """Tell the recorder every ``period_s`` what waits at each instance, until cancelled. What an
    instance encodes or prefills just now counts as waiting; running are sequences that decode."""
    while True:
        for member in watch.fleet().members:
            waiting = sum(each.jobs for each in member.waiting.values())
            recorder.queued(place_of(member.id), waiting, member.running)
        await asyncio.sleep(period_s)


def problem_of(config: Config, hardware: Hardware, shapes: tuple[Shape, ...]) -> Problem:
    """The instances of a run as the planner sees them: all like the first role's."""
    first, _ = topology.parse(config.cluster.topology)[0]
    card = hardware.card(topology.name(first))
    sizes, far = card.sizes, hardware.far
    kind = Kind(
        name="instance",
        costs=card.costs,
        tp=sizes.num_devices,
        memory_bytes=float(sizes.num_devices * sizes.device_bytes),
    )
    counts = [count for _, count in topology.parse(config.cluster.topology)]
    return Problem(
        shapes=shapes,
        kinds=(kind,),
        num_gpus=sum(counts) * sizes.num_devices,
        footprint=Footprint(
            encoder_bytes=float(sizes.num_devices * sizes.vision_bytes),
            language_bytes=float(sizes.language_bytes),
            kv_token_bytes=float(sizes.kv_token_bytes),
            embedding_token_bytes=float(sizes.visual_token_bytes),
        ),
        embedding_link=Link(far.latency_s, far.bytes_per_s),
        kv_link=Link(far.latency_s, far.bytes_per_s, 1 / hardware.kv_layers),
        chunks=(config.engine.token_budget or config.engine.chunk_tokens,),
        max_decodes=config.engine.max_sequences,
    )
