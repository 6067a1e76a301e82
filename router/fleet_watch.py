"""What a router knows of its instances and of what is asked of them, as policies of roles see it.

Windows of arrivals and of answers, and the jobs in flight. Requests that were refused before their
prompt was known are not among the arrivals. Decides nothing, changes nothing.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping

import msgspec

from router.occupancy import Occupancy
from scheduler.costs import Costs
from scheduler.planner.demand import Shape
from scheduler.roles.capacity import Typical, capacities
from scheduler.roles.elasticmm import MULTIMODAL, TEXT
from scheduler.roles.fleet import Fleet, Load, Member, Standing
from triptych.core.clock import Clock
from triptych.core.config import EngineConfig
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import InstanceState, Role, Stage
from triptych.core.request import Prompt, Slo
from triptych.core.view import ClusterView, InstanceView

ARRIVALS_S = 10.0
"""Window of what is asked for."""
ANSWERS_S = 30.0
"""Window of what was answered, and of utilisation: answers are fewer, and late."""
MAX_SAMPLE = 200
"""Requests that are remembered as a sample of all."""
TPOT_S = 0.05
"""Bound on the gap between tokens where no request names one: that of the class ``interactive``."""


class _Arrival(msgspec.Struct, frozen=True):
    at_s: float
    prompt: int
    images: int
    visual: int
    slo: Slo


class Answer(msgspec.Struct, frozen=True):
    """What came of a request."""

    slo: str
    is_attained: bool
    """It was answered, within every bound of its class."""
    route: tuple[str, ...]
    """Instances that worked for it."""
    shape: Shape | None = None
    """Of one that was answered."""


class _Totals:
    """Of the requests that were answered."""

    def __init__(self) -> None:
        self.number = self.prompt = self.cached = self.output = 0

    def add(self, shape: Shape | None, sign: int) -> None:
        if shape is not None:
            self.number += sign
            self.prompt += sign * shape.prompt
            self.cached += sign * shape.cached
            self.output += sign * shape.output


class FleetWatch:
    """Of one router."""

    def __init__(
        self, clock: Clock, view: Callable[[], ClusterView], engine: EngineConfig,
        costs: Costs | None = None,
    ) -> None:  # fmt: skip
        self.occupancy = Occupancy(clock)
        self.groups: dict[str, str] = {}
        """Modality group by place, for policies that have groups."""
        self._clock = clock
        self._view = view
        self._engine = engine
        self._costs = costs
        self._begin_s = clock.now()
        self._arrivals: deque[_Arrival] = deque()
        self._sample: deque[Shape] = deque(maxlen=MAX_SAMPLE)
        self._answers: deque[tuple[float, Answer]] = deque()
        self._totals = _Totals()
        self._busy: dict[InstanceId, deque[tuple[float, float]]] = {}

    @property
    def sample(self) -> tuple[Shape, ...]:
        """The last requests."""
        return tuple(self._sample)

    def arrived(self, prompt: Prompt, slo: Slo) -> None:
        """A request was accepted."""
        sizes = [item.num_tokens for item in prompt.items]
        arrival = _Arrival(self._clock.now(), len(prompt), len(sizes), sum(sizes), slo)
        self._arrivals.append(arrival)
        self._prune()

    def answered(self, answer: Answer) -> None:
        """A request is over."""
        self._answers.append((self._clock.now(), answer))
        self._totals.add(answer.shape, +1)
        if answer.shape is not None:
            self._sample.append(answer.shape)
        self._prune()

    def fleet(self, moving: Mapping[str, Role] | None = None) -> Fleet:
        """All instances now. ``moving``: places between two roles, with the role to come."""
        self._prune()
        moving = moving or {}
        attained = self._attainments()
        present: dict[InstanceId, Member] = {}
        for view in self._view().instances:
            of_one = attained.get(view.description.id, {})
            present[view.description.id] = self._member(view, moving, of_one)
        self.occupancy.keep(present)
        self._busy = {name: marks for name, marks in self._busy.items() if name in present}
        places = {place_of(instance) for instance in present}
        for place, role in moving.items():
            if place not in places:
                name = InstanceId(place)
                present[name] = Member(name, role, Standing.SWITCHING, group=self._group(place))
        groups = {
            TEXT: self._load([one for one in self._arrivals if not one.images]),
            MULTIMODAL: self._load([one for one in self._arrivals if one.images]),
        }
        members = tuple(present[name] for name in sorted(present))
        return Fleet(members, self._load(self._arrivals), groups)

    def _member(
        self, view: InstanceView, moving: Mapping[str, Role], attained: Mapping[str, list[int]]
    ) -> Member:
        about, place = view.description, place_of(view.description.id)
        role, standing = frozenset(about.role), Standing.READY
        if view.state is not InstanceState.READY:
            standing = Standing.DRAINING
            if place in moving:
                role, standing = moving[place], Standing.SWITCHING
        seen = self.occupancy.of(about.id)
        room = 0 if about.kv is None else about.num_kv_blocks * about.kv.block_size
        return Member(
            id=about.id,
            role=role,
            standing=standing,
            waiting=seen.waiting,
            running=seen.running,
            utilisation=self._utilisation(about.id, seen.busy_s),
            attainment={slo: met / total for slo, (met, total) in sorted(attained.items())},
            kv_occupancy=min(1.0, seen.context_tokens / room) if room else 0.0,
            group=self._group(place),
        )

    def _utilisation(self, instance: InstanceId, busy_s: float) -> float:
        """Share of about the last window in which it had something to do."""
        marks = self._busy.setdefault(instance, deque())
        now_s = self._clock.now()
        while len(marks) > 1 and marks[1][0] <= now_s - ANSWERS_S:
            marks.popleft()
        begin_s, before_s = marks[0] if marks else (now_s - busy_s, 0.0)
        if not marks or now_s > marks[-1][0]:
            marks.append((now_s, busy_s))
        passed_s = now_s - begin_s
        return min(1.0, (busy_s - before_s) / passed_s) if passed_s > 0.0 else 0.0

    def _attainments(self) -> dict[str, dict[str, list[int]]]:
        """By instance and class: requests that it worked for and that met their bounds, and all."""
        found: dict[str, dict[str, list[int]]] = {}
        for _, answer in self._answers:
            for instance in frozenset(answer.route):
                counts = found.setdefault(instance, {}).setdefault(answer.slo, [0, 0])
                counts[0] += answer.is_attained
                counts[1] += 1
        return found

    def _load(self, arrivals: Collection[_Arrival]) -> Load:
        """Per second. What will be cached is judged by what was, answers by those before."""
        if not arrivals:
            return Load()
        seconds = min(ARRIVALS_S, max(1.0, self._clock.now() - self._begin_s))
        number, totals = len(arrivals), self._totals
        images, visual = sum(one.images for one in arrivals), sum(one.visual for one in arrivals)
        prompt = sum(one.prompt for one in arrivals)
        output = totals.output / totals.number if totals.number else 0.0
        fresh = 1.0 - totals.cached / totals.prompt if totals.prompt else 1.0
        bounds = [one.slo.tpot_s for one in arrivals if one.slo.tpot_s is not None]
        typical = Typical(
            picture=visual // images if images else 0,
            prompt=max(1, round(fresh * prompt / number)),
            output=round(output),
            tpot_s=min(bounds, default=TPOT_S),
        )
        return Load(
            requests=number / seconds,
            images=images / seconds,
            text=fresh * (prompt - visual) / seconds,
            visual=fresh * visual / seconds,
            output=number * output / seconds,
            capacity=self._capacity(typical),
        )

    def _capacity(self, typical: Typical) -> Mapping[Stage, float]:
        if self._costs is None:
            return {}
        engine = self._engine
        return capacities(self._costs, typical, engine.chunk_tokens, engine.max_sequences)

    def _group(self, place: str) -> str:
        return self.groups.get(place, "")

    def _prune(self) -> None:
        now_s = self._clock.now()
        while self._arrivals and self._arrivals[0].at_s <= now_s - ARRIVALS_S:
            self._arrivals.popleft()
        while self._answers and self._answers[0][0] <= now_s - ANSWERS_S:
            self._totals.add(self._answers.popleft()[1].shape, -1)


def place_of(instance: InstanceId) -> str:
    """``decode-0`` of ``decode-0@3``."""
    return instance.partition("@")[0]
