"""When a request would have its tokens: what is pending at each instance, in seconds, and its own
work behind that.

First come, first served at every instance; stages of one instance share one machine; a picture's
encoding overlaps the rest of the prompt. Everything grows with the load and with the request, so
more work is never predicted to end sooner. Knows the latency model; chooses nothing.
"""

import math
from collections.abc import Iterable, Sequence

import msgspec

from scheduler.costs import Costs
from scheduler.estimate import WEIGHT, Error
from scheduler.latency import Latencies
from scheduler.lengths import Lengths
from scheduler.predict import Speeds, place_of
from triptych.core.ids import InstanceId
from triptych.core.layout import Layout
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.view import ClusterView, Expected, InstanceView, Pending

FAR = 4096
"""A prefix long enough to see what attending to it costs."""
PICTURE = 1024
"""Visual tokens of the picture by which queues of pictures are priced."""


class Terms(msgspec.Struct, frozen=True):
    """What of the engines' settings prediction needs; see ``EngineConfig``."""

    token_budget: int = 512
    image_budget_tokens: int = 2048
    max_sequences: int = 64
    overlap: bool = True


class Work(msgspec.Struct, frozen=True):
    """What a request has to have done."""

    pictures: tuple[int, ...] = ()
    """Visual tokens of each picture that has to be encoded."""
    tokens: int = 0
    """Of the prompt, whether cached or not; for admission what is not known to be cached."""
    tail: int = 0
    """From the last picture's first token on: computed only when that picture is here."""
    num_output: int = 1
    """Tokens that it is expected to draw."""
    most_output: int = 1
    """Tokens for which it has to have room."""


class Outlook(msgspec.Struct, frozen=True):
    """What a request would find if it were let on now."""

    expected: Expected
    wait_s: float
    """Until the idlest prefill instance has done what is pending there."""
    room_s: float
    """Until some decode instance has a place and blocks; 0 if one has."""
    drain_s: float
    """Until all that decodes at the decode instance that is done first has ended."""
    service_s: float
    """By how much the request would delay those behind it: its share of the stage of which it
    takes most, all instances of a stage working side by side."""


class Queue:
    """One instance and what waits there. Computed once for each of its views."""

    def __init__(self, view: InstanceView, speeds: Speeds, terms: Terms) -> None:
        self.view = view
        self.place = place_of(view.description.id)
        self.stamp = speeds.stamp(self.place)
        """Of the model that it was priced by."""
        costs, chunk = speeds.of(view.description.id), speeds.chunk(view.description.id)
        self.name: InstanceId = view.description.id
        self._costs = costs
        self._terms = terms
        pending, stages = view.pending, view.description.role
        self.decodes, self.context = pending.decodes, pending.context_tokens
        about, is_ready = view.description, view.state is InstanceState.READY
        self.can_encode = is_ready and Stage.ENCODE in stages
        self.can_prefill = is_ready and Stage.PREFILL in stages
        self.can_decode = is_ready and Stage.DECODE in stages
        self.kv = None if about.kv is None else (about.model, about.kv.content)
        self.embedding = None if about.embedding is None else (about.model, about.embedding.content)
        """What an instance must have in common with another to take blocks from it."""
        self.machine = about.transfer.machine
        self.token_bytes, self.picture_bytes = _token_bytes(about.kv), _token_bytes(about.embedding)
        self._pictures: dict[int, float] = {}
        """Seconds by size."""
        self.encode_s = self.prefill_s = self.next_s = self.token_s = 0.0
        if Stage.ENCODE in stages:
            self._picture_s = costs.vision_s((PICTURE,)) / PICTURE
            steps = math.ceil(pending.image_tokens / terms.image_budget_tokens)
            base_s = costs.vision_s((1,))
            self.encode_s = steps * base_s + pending.image_tokens * self._picture_s
        if Stage.PREFILL in stages or Stage.DECODE in stages:
            self._price_prefill(costs)
            steps = math.ceil(pending.prompt_tokens / terms.token_budget)
            self.prefill_s = self.chunks_s(
                max(pending.prompts, steps), pending.prompt_tokens, pending.prompt_pairs
            )
            more = self.decodes + 1
            self.next_s = costs.language_s(chunk, more, self.context)
            """Of a step with one more sequence, as long as it has no KV."""
            far_s = costs.language_s(chunk, more, self.context + FAR)
            self._context_s = max(0.0, far_s - self.next_s) / FAR
            self.step_s = costs.language_s(chunk, self.decodes, self.context)
            """Of a step as it is now; 0 where nothing is computed."""
        self.busy_s = self.encode_s + self.prefill_s
        """Until all that is pending here is done, decodes aside."""
        self.seat_s = self.busy_s + self.next_s
        """What decode instances are compared by at first."""

    def picture_s(self, num_tokens: int) -> float:
        """Seconds to encode one more picture."""
        seconds = self._pictures.get(num_tokens)
        if seconds is None:
            seconds = self._pictures[num_tokens] = self._costs.vision_s((num_tokens,))
        return seconds

    def compute_s(self, prefix: int, length: int) -> float:
        """Seconds to compute ``length`` tokens of a prompt behind ``prefix`` others, beside what
        decodes here."""
        steps = math.ceil(length / self._terms.token_budget)
        return self.chunks_s(steps, length, prefix * length + length * (length + 1) // 2)

    def chunks_s(self, steps: int, tokens: int, pairs: int) -> float:
        """Seconds of so many steps with chunks, of all their tokens, of all that these attend to:
        linear, with the slopes of a full chunk."""
        return steps * self._step_s + tokens * self.token_s + pairs * self._pair_s

    def gap_s(self, tokens: int) -> float:
        """Seconds of a step that decodes one more sequence of ``tokens`` beside those that do, and
        beside the chunk that steps have here in the mean."""
        return self.next_s + tokens * self._context_s

    def room_s(self, tokens: int, gap_s: float) -> float:
        """Seconds until there is a place, and blocks, for one more sequence of ``tokens``: as much
        of what is still to be drawn here as exceeds the bounds."""
        about = self.view.description
        size = 1 if about.kv is None else about.kv.block_size
        places, blocks = self._terms.max_sequences, max(1, about.num_kv_blocks * size)
        over = max(
            (self.decodes + 1 - places) / places, (self.context + tokens - blocks) / blocks, 0.0
        )
        return over * (gap_s + self.drain_s(gap_s))

    def drain_s(self, gap_s: float) -> float:
        """Seconds until all that decodes here has ended, places being full."""
        return gap_s * self.view.pending.output_tokens / self._terms.max_sequences

    def _price_prefill(self, costs: Costs) -> None:
        """Slopes of a step with a chunk. Of its own decodes the step is priced too: they are in it
        anyway, and whoever waits for the chunk waits for them."""
        budget, beside = self._terms.token_budget, (self.decodes, self.context)
        one = costs.language_s(((0, 1),), *beside)
        near, far = (costs.language_s(((prefix, budget),), *beside) for prefix in (0, FAR))
        self._pair_s = max(0.0, far - near) / (FAR * budget)
        pairs_s = self._pair_s * budget * (budget + 1) / 2
        self.token_s = max(0.0, near - one - pairs_s) / max(1, budget - 1)
        self._step_s = max(0.0, one - self.token_s - self._pair_s)


class Forecast:
    """Predictions for one cluster, and how they compared. ``look`` keeps what it computed for
    instances whose view is the very same object; ``saw`` and ``lengths.learn`` learn."""

    def __init__(self, latencies: Latencies, terms: Terms = Terms()) -> None:  # noqa: B008
        self.latencies = latencies
        self.terms = terms
        self.ttft_error, self.tpot_error = Error(), Error()
        self._queues: list[Queue] = []
        """In the order of the view looked at last."""
        self._num_learned = 0
        self._idles: dict[InstanceId, Queue] = {}
        self.lengths = Lengths()
        self._late_s = self._slow_s = 0.0
        """Means of what requests took beyond the model: what is not computing."""

    def look(self, view: ClusterView) -> list[Queue]:
        """A queue for each instance of ``view``."""
        known, speeds = self._queues, self.latencies.speeds
        has_learned, self._num_learned = speeds.num_learned != self._num_learned, speeds.num_learned
        if len(known) != len(view.instances):
            known = self._queues = [Queue(each, speeds, self.terms) for each in view.instances]
            self._idles.clear()
        for place, (each, queue) in enumerate(zip(view.instances, known, strict=True)):
            if queue.view is not each or (has_learned and queue.stamp != speeds.stamp(queue.place)):
                known[place] = Queue(each, speeds, self.terms)
        return known

    def outlook(self, view: ClusterView, work: Work) -> Outlook | None:
        """The best that ``work`` could have of any instances, whether or not they go together: for
        admission, which asks whether to promise at all. None if a stage has no instance."""
        stages = _Stages(self.look(view), work)
        if not stages.are_whole:
            return None
        prefills, decodes, encoders = stages.prefills, stages.decodes, stages.encoders
        pictures_s = self._pictures_s(encoders, work.pictures)
        ready_s = _fill([queue.busy_s for queue in encoders], pictures_s)
        firsts = (self.first_s(queue, queue.busy_s, ready_s, 0, work) for queue in prefills)
        tokens = work.tokens + work.num_output // 2
        gaps = [(queue, queue.gap_s(tokens)) for queue in decodes]
        most = work.tokens + work.most_output
        rooms = [queue.room_s(most, gap_s) for queue, gap_s in gaps]
        spread = max(1, work.num_output - 1)
        tpot_s = min(
            gap_s + room_s / spread for (_, gap_s), room_s in zip(gaps, rooms, strict=True)
        )
        compute_s = sum(queue.compute_s(0, max(1, work.tokens)) for queue in prefills)
        places = len(decodes) * self.terms.max_sequences
        return Outlook(
            expected=Expected(min(firsts), tpot_s),
            wait_s=min(queue.busy_s for queue in prefills),
            room_s=min(rooms),
            drain_s=min(queue.drain_s(gap_s) for queue, gap_s in gaps),
            service_s=max(
                sum(pictures_s) / max(1, len(encoders)),
                compute_s / len(prefills) ** 2,
                work.num_output * tpot_s / places,
            ),
        )

    def alone(self, view: ClusterView, work: Work) -> Expected | None:
        """The same of instances that have nothing to do."""
        found = [self._idle(queue) for queue in self.look(view)]
        stages = _Stages(found, work)
        if not stages.are_whole:
            return None
        ready_s = max(self._pictures_s(stages.encoders, work.pictures), default=0.0)
        firsts = (self.first_s(queue, 0.0, ready_s, 0, work) for queue in stages.prefills)
        tokens = work.tokens + work.num_output // 2
        return Expected(min(firsts), min(queue.gap_s(tokens) for queue in stages.decodes))

    def first_s(
        self, queue: Queue, begin_s: float, ready_s: float, prefix: int, work: Work
    ) -> float:
        """Seconds to the first token at a prefill instance that can begin in ``begin_s``, if the
        last picture is there in ``ready_s`` and ``prefix`` leading tokens need not be computed."""
        whole_s = queue.compute_s(prefix, max(1, work.tokens - prefix))
        if ready_s <= 0.0:
            return begin_s + whole_s
        if not self.terms.overlap:
            return max(begin_s, ready_s) + whole_s
        tail = max(1, min(work.tail, work.tokens - prefix))
        return max(begin_s + whole_s, ready_s + queue.compute_s(work.tokens - tail, tail))

    def promise(self, expected: Expected) -> Expected:
        """What a client would see: the model's seconds, and what requests took beyond them."""
        return Expected(expected.ttft_s + self._late_s, expected.tpot_s + self._slow_s)

    def saw(self, expected: Expected, ttft_s: float, tpot_s: float | None) -> None:
        """A request was answered: from its placement to its first token, and its mean gap."""
        promised = self.promise(expected)
        self.ttft_error.learn(promised.ttft_s, ttft_s)
        self._late_s += WEIGHT * (max(0.0, ttft_s - expected.ttft_s) - self._late_s)
        if tpot_s is not None:
            self.tpot_error.learn(promised.tpot_s, tpot_s)
            self._slow_s += WEIGHT * (max(0.0, tpot_s - expected.tpot_s) - self._slow_s)

    def errors(self) -> dict[str, Error]:
        """How predictions compared with what was seen, by what was predicted."""
        return {
            "ttft": self.ttft_error, "tpot": self.tpot_error, **self.latencies.speeds.errors()
        }  # fmt: skip

    def _idle(self, queue: Queue) -> Queue:
        """The same instance with nothing to do."""
        idle = self._idles.get(queue.name)
        if idle is None or idle.stamp != queue.stamp or idle.view.state is not queue.view.state:
            view = msgspec.structs.replace(queue.view, pending=Pending())
            idle = self._idles[queue.name] = Queue(view, self.latencies.speeds, self.terms)
        return idle

    @staticmethod
    def _pictures_s(encoders: Sequence[Queue], pictures: Iterable[int]) -> list[float]:
        """Seconds of each picture on the mean of the encoders."""
        number = max(1, len(encoders))
        return [sum(queue.picture_s(size) for queue in encoders) / number for size in pictures]


class _Stages:
    """Instances by what they can do for ``work``."""

    def __init__(self, queues: Sequence[Queue], work: Work) -> None:
        self.prefills = [queue for queue in queues if queue.can_prefill]
        self.decodes = [queue for queue in queues if queue.can_decode]
        self.encoders = [queue for queue in queues if queue.can_encode]
        self.are_whole = bool(
            self.prefills and self.decodes and (self.encoders or not work.pictures)
        )


def _token_bytes(layout: Layout | None) -> float:
    return 0.0 if layout is None else layout.block_bytes / layout.block_size


def _fill(waits: Sequence[float], works: Sequence[float]) -> float:
    """When the last of ``works`` is done, if they are spread over machines that are busy for
    ``waits``: the level to which they fill them, and at least the longest on the idlest."""
    if not works:
        return 0.0
    total, level, used = sum(works), 0.0, 0.0
    ordered = sorted(waits)
    for number, wait in enumerate(ordered, 1):
        used += wait
        level = (total + used) / number
        if number == len(ordered) or level <= ordered[number]:
            break
    return max(level, ordered[0] + max(works))
