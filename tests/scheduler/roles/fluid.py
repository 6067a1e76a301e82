"""A fleet in which work flows like water: enough to close the loop around a policy of roles.

Each stage's work is shared evenly by those that serve it; what is not done waits. A switch takes an
instance away for a while. Deterministic.
"""

import msgspec

from scheduler.roles.fleet import Fleet, Load, Member, Standing, Waiting, is_safe
from triptych.core.lifecycle import Stage
from triptych.core.topology import parse

E, P, D = Stage
CAPACITY = {E: 85_000.0, P: 52_000.0, D: 20_000.0}
"""Tokens per second of one instance, about those of docs/planning_table.py."""


def load(rate, images=1.0, visual=1196, text=258, output=140):
    """Requests of one kind."""
    return Load(
        rate, rate * images, rate * text, rate * images * visual, rate * output, CAPACITY
    )  # fmt: skip


def members(topology, group=""):
    roles = [role for role, count in parse(topology) for _ in range(count)]
    return tuple(Member(f"i{n}", role, group=group) for n, role in enumerate(roles))


class Fluid:
    def __init__(self, topology, switch_s=0.7, step_s=5.0, groups=None):
        self.members = list(members(topology) if groups is None else groups)
        self.backlog = dict.fromkeys(Stage, 0.0)
        self.switches = []
        self.now_s = 0.0
        self._step_s, self._switch_s = step_s, switch_s
        self._until = {}

    def run(self, policy, loads, seconds, by_group=None):
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self._serve(loads(self.now_s))
            fleet = Fleet(
                tuple(self.members),
                loads(self.now_s),
                {} if by_group is None else by_group(self.now_s),
            )
            switches = list(policy.decide(fleet, self.now_s))
            assert is_safe(fleet, switches), switches
            for switch in switches:
                self._switch(switch)
                self.switches.append((self.now_s, switch))
            self.now_s += self._step_s
        return self

    def counts(self):
        return Fleet(tuple(self.members)).counts()

    def _serve(self, arriving):
        ready = [one for one in self.members if one.standing is Standing.READY]
        left = {one.id: self._step_s for one in ready}
        for stage in Stage:
            serving = [one for one in ready if stage in one.role]
            work = (arriving.tokens(stage) * self._step_s + self.backlog[stage]) / CAPACITY[stage]
            room = sum(left[one.id] for one in serving)
            done = min(work, room)
            self.backlog[stage] = (work - done) * CAPACITY[stage]
            for one in serving:
                left[one.id] *= 1.0 - done / room if room else 1.0
        self.members = [self._seen(one, arriving, left) for one in self.members]

    def _seen(self, one, arriving, left):
        standing = one.standing
        if standing is Standing.SWITCHING and self._until[one.id] <= self.now_s:
            standing = Standing.READY
        waiting = {}
        for stage in one.role:
            among = sum(stage in other.role for other in self.members)
            tokens = self.backlog[stage] / among
            size = max(1.0, arriving.tokens(stage) / max(arriving.requests, 1e-9))
            waiting[stage] = Waiting(int(tokens / size), int(tokens))
        busy = 1.0 - left.get(one.id, self._step_s) / self._step_s
        return msgspec.structs.replace(one, standing=standing, waiting=waiting, utilisation=busy)

    def _switch(self, switch):
        self._until[switch.instance] = self.now_s + self._switch_s
        self.members = [
            msgspec.structs.replace(
                one,
                role=switch.role,
                group=switch.group or one.group,
                standing=Standing.SWITCHING,
                waiting={},
            )
            if one.id == switch.instance
            else one
            for one in self.members
        ]
