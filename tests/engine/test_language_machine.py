"""Any interleaving of jobs, arrivals, cancels, failures and steps: exact tokens, nothing left."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.registry import policies
from tests.engine.scripted import (
    EMBEDDING_SIZE,
    ScriptedExecutor,
    expected,
    kv_of,
    make_job,
    next_token,
    picture,
)
from triptych.cache.eviction import ORDERS
from triptych.cache.kv import KvCache
from triptych.core.config import EngineConfig
from triptych.core.errors import RequestError
from triptych.core.handoff import Endpoint, FirstToken, TransferRef
from triptych.core.ids import Handle, InstanceId
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Advanced, Drew, Dropped, Ended, Reserved

SIZE = 3
CHUNK = 4
BUDGET = 7
FOREVER = 1e9
WORDS = {"x": [1, 2, 3, 4, 5], "y": [1, 2, 3], "z": [7], "w": [1, 2, 3, 4, 5, 6, 7, 8]}

prompts = st.lists(st.sampled_from(["x", "y", "z", "w", "p3", "p1", "q5"]), min_size=1, max_size=4)


def promise():
    return TransferRef(Handle("secret"), 0, InstanceId("prefill-0"), Endpoint(), "layout", 0)


def parse(pieces):
    """Token ids and items of words and pictures: ``p3`` is picture p with three tokens."""
    tokens, items = [], []
    for piece in pieces:
        if piece in WORDS:
            tokens += WORDS[piece]
        else:
            items.append(picture(piece, len(tokens), int(piece[1:])))
            tokens += [9] * int(piece[1:])
    return tokens, items


class Client:
    """What the outside knows of one job."""

    def __init__(self, job):
        self.job = job
        self.tokens = list(job.generated)
        self.end = None
        self.blocks = None
        self.fetched = 0
        self.awaited = 0
        self.has_arrived = False
        self.items_missing = set() if job.kv else set(range(len(job.prompt.items)))
        self.excuses = {}
        self.is_released = False

    @property
    def known(self):
        return [*self.job.prompt.token_ids, *self.job.generated]


class LanguageMachine(RuleBasedStateMachine):
    num_blocks = 14
    deterministic = False
    order = "fcfs"
    batching = "decode_first"
    eviction = "lru"
    steps_ahead = 1

    def __init__(self):
        super().__init__()
        config = EngineConfig(
            token_budget=BUDGET,
            chunk_tokens=CHUNK,
            max_sequences=5,
            max_waiting=100,
            deterministic=self.deterministic,
            order=self.order,
            batching=self.batching,
        )
        cache = KvCache(self.num_blocks, SIZE, "model", order=ORDERS[self.eviction])
        self.engine = LanguageEngine(
            config,
            cache,
            policies(config),
            recomputes_items=True,
            max_tokens=10_000,
            elsewhere=self.elsewhere,
        )
        self.engine.max_steps = self.steps_ahead
        self.engine.are_told = self.steps_ahead > 1
        self.executor = ScriptedExecutor(SIZE)
        self.clients = {}
        self.step = None
        self.in_flight = None
        """What is being executed of the step: its plan, or one that follows it."""
        self.left = 0
        self.now = 0.0
        self.next_row = 0
        self.hits = {}

    @rule(
        pieces=prompts,
        kind=st.sampled_from(["decode", "decode", "prefill", "inbound"]),
        max_tokens=st.integers(1, 8),
        num_generated=st.integers(0, 3),
        salt=st.sampled_from([b"", b"", b"other"]),
        stops=st.booleans(),
        budget_s=st.sampled_from([FOREVER, FOREVER, 5.0]),
        urgency=st.sampled_from([{}, {"slo_ttft_s": -1.0, "slo_tpot_s": 0.1}, {"priority": 1},
                                 {"slo_ttft_s": 2.0, "slo_tpot_s": 1.0, "later_s": 0.5}]),
    )  # fmt: skip
    def submit(self, pieces, kind, max_tokens, num_generated, salt, stops, budget_s, urgency=()):
        tokens, items = parse(pieces)
        stop = (3, 17, 40) if stops else ()
        options = {"items": items, "max_tokens": max_tokens, "stop": stop, "salt": salt}
        output = expected(make_job("draft", tokens, **options))
        options["generated"] = output[: min(num_generated, len(output) - 1)]
        if kind == "prefill":
            options["publish"] = Handle("secret")
        if kind == "inbound":
            options["kv"] = promise()
        name = f"{kind}-{len(self.clients)}"
        job = make_job(name, tokens, budget_s=budget_s, **options, **dict(urgency))
        try:
            self.engine.submit(job, self.now)
        except RequestError:
            assert len(tokens) + max_tokens > (self.num_blocks - 1) * SIZE
            return
        self.engine.submit(job, self.now)
        self.clients[name] = Client(job)

    @rule(data=st.data())
    def item_arrives(self, data):
        waiting = [(n, i) for n, c in self.clients.items() for i in sorted(c.items_missing)]
        if waiting:
            self.bring_item(*data.draw(st.sampled_from(waiting)))

    def bring_item(self, name, index):
        client = self.clients[name]
        client.items_missing.remove(index)
        item = client.job.prompt.items[index]
        count = -(-item.num_tokens // EMBEDDING_SIZE)
        blocks = tuple(range(self.next_row, self.next_row + count))
        self.next_row += count
        self.executor.write_rows(item, blocks)
        self.engine.item_ready(client.job.header.id, index, blocks)

    @rule(data=st.data(), part=st.booleans())
    def kv_arrives(self, data, part):
        names = [name for name, client in self.clients.items() if self.is_arriving(client)]
        if names:
            self.bring_kv(data.draw(st.sampled_from(names)), part)

    @staticmethod
    def is_arriving(client):
        return client.job.kv and client.blocks and not client.has_arrived and client.end is None

    def bring_kv(self, name, part=False):
        client = self.clients[name]
        known, job_id = client.known, client.job.header.id
        end = min(client.fetched + SIZE, len(known)) if part else len(known)
        self.executor.write_kv(client.job, known, client.blocks, client.fetched, end)
        client.fetched = end
        self.engine.arrived(job_id, end)
        if not part:
            token = next_token(kv_of(client.job, known))
            self.engine.arrived_all(job_id, FirstToken(token))
            client.has_arrived = True
            client.tokens.append(token)

    def elsewhere(self, job, table):
        """Tokens of a job that a lower tier is said to hold."""
        return 0

    @rule(data=st.data(), missing=st.sampled_from([0, 0, 2, 100]))
    def prefix_arrives(self, data, missing):
        names = [name for name, client in self.clients.items() if self.is_awaiting(client)]
        if names:
            self.bring_prefix(data.draw(st.sampled_from(names)), missing)

    @staticmethod
    def is_awaiting(client):
        return client.awaited > 0 and client.end is None

    def bring_prefix(self, name, missing=0):
        """All that was said to be elsewhere, or less of it."""
        client = self.clients[name]
        known = [*client.job.prompt.token_ids, *client.tokens]
        end = max(client.awaited - missing, self.hits[name])
        self.executor.write_kv(client.job, known, client.blocks, self.hits[name], end)
        client.awaited, self.hits[name] = 0, end
        self.engine.prefix_arrived(name, end)

    @precondition(lambda self: self.step is None)
    @rule(seconds=st.sampled_from([0.0, 0.0, 1.0]))
    def plan(self, seconds):
        self.now += seconds
        step = self.engine.plan(self.now)
        if step is None:
            return
        self.hear(step.outcomes)
        assert step.jobs == {segment.job for segment in step.plan.segments}
        if step.jobs:
            self.check_plan(step.plan)
            self.step, self.in_flight, self.left = step, step.plan, step.plan.steps
            assert self.left <= self.steps_ahead

    def check_plan(self, plan):
        assert plan.num_tokens <= BUDGET or len(plan.segments) == 1
        assert len({segment.job for segment in plan.segments}) <= 5
        if self.deterministic:
            assert len(plan.segments) == 1
        for segment in plan.segments:
            self.check_chunk(self.clients[segment.job], segment)

    def check_chunk(self, client, segment):
        """Chunks begin and end where the prompt says, but for a start at a prefix hit."""
        prompt = client.job.prompt
        cuts = {0, len(prompt), *range(0, len(prompt), CHUNK)}
        cuts |= {cut for item in prompt.items for cut in (item.offset, item.end)}
        if segment.start < len(prompt):
            assert segment.end == min(cut for cut in cuts if cut > segment.start)
            hit = self.hits[segment.job]
            assert segment.start in cuts or segment.start == hit
        elif self.deterministic:
            assert segment.end == segment.start + 1

    @precondition(lambda self: self.step is not None)
    @rule()
    def apply(self):
        step, self.step = self.step, None
        result = self.executor.execute(self.in_flight)
        self.hear(self.engine.apply(step, result, self.now))

    @precondition(lambda self: self.left > 1 and self.step is not None)
    @rule(seconds=st.sampled_from([0.0, 1.0]))
    def advance(self, seconds):
        """One step of a run is over, and the next begins. Whoever is over, or given up, is computed
        to the end of the run: its blocks are its own until then."""
        self.now += seconds
        result = self.executor.execute(self.in_flight)
        self.hear(self.engine.advance(self.step, result.drawn, result.seconds, self.now))
        self.in_flight, self.left = self.in_flight.following(result.drawn), self.left - 1

    @precondition(lambda self: self.step is not None)
    @rule()
    def execution_fails(self):
        step, self.step = self.step, None
        for name in step.jobs:
            self.clients[name].excuses["internal"] = True
        self.hear(self.engine.execution_failed(step))

    @rule(data=st.data(), is_cancel=st.booleans())
    def give_up(self, data, is_cancel):
        names = [name for name, client in self.clients.items() if client.end is None]
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        code = "cancelled" if is_cancel else "data_loss"
        self.clients[name].excuses[code] = True
        if is_cancel:
            done = self.engine.cancel(name)
            assert done == (self.step is None or name not in self.step.jobs)
            if done:
                assert all(holding.owner != name for holding in self.engine.census()[0])
        else:
            self.engine.fail(name, code, "")

    @rule(data=st.data())
    def let_go(self, data):
        names = [n for n, c in self.clients.items() if c.end is not None and not c.is_released]
        if names:
            name = data.draw(st.sampled_from(names))
            self.engine.release(name)
            self.clients[name].is_released = True
            assert all(holding.owner != name for holding in self.engine.census()[0])

    def hear(self, outcomes):
        for outcome in outcomes:
            client = self.clients[outcome.job]
            assert client.end is None, "something was said after the end"
            match outcome:
                case Reserved(job, blocks, hit_tokens, awaited):
                    assert len(set(blocks)) == len(blocks)
                    assert awaited == 0 or awaited > hit_tokens
                    client.awaited = awaited
                    client.blocks, client.fetched = blocks, hit_tokens
                    self.hits[job] = hit_tokens
                    self.check_kv(client, hit_tokens)
                case Advanced(_, computed):
                    assert client.job.publish
                    self.check_kv(client, computed)
                case Drew(_, token):
                    assert token.index == len(client.tokens)
                    client.tokens.append(token.id)
                case Ended(_, reason):
                    client.end = reason
                    self.check_end(client, reason)
                case Dropped(_, code):
                    client.end = code
                    self.check_excuse(client, code)

    def check_kv(self, client, end):
        values = kv_of(client.job, client.known)[:end]
        places = [self.executor.place(client.blocks, position) for position in range(len(values))]
        assert [self.executor.kv[place] for place in places] == values

    def check_end(self, client, reason):
        right = expected(client.job)
        if reason == "prefilled":
            assert client.job.publish
            assert client.tokens == right[: len(client.job.generated) + 1]
            self.check_kv(client, len(client.known))
        else:
            assert client.tokens == right
            assert reason == ("stop" if right[-1] in client.job.stop.token_ids else "length")

    def check_excuse(self, client, code):
        if code == "deadline_exceeded":
            assert client.job.header.budget_s < FOREVER
        elif code == "preempted":
            assert client.job.kv
            assert client.job.prompt.items
        else:
            assert code in client.excuses
        assert client.tokens == expected(client.job)[: len(client.tokens)]

    @invariant()
    def is_consistent(self):
        self.engine.check()

    def teardown(self):
        """Everything that was promised comes: all jobs end, in a bounded number of steps."""
        if self.step is not None:
            self.apply()
        work = sum(len(c.known) + c.job.stop.max_tokens + 4 for c in self.clients.values())
        for _ in range(20 + 4 * work):
            for name, client in self.clients.items():
                for index in sorted(client.items_missing):
                    self.bring_item(name, index)
                if self.is_arriving(client):
                    self.bring_kv(name)
                if self.is_awaiting(client):
                    self.bring_prefix(name)
                if client.end is not None:
                    self.engine.release(name)
            if self.engine.is_idle:
                break
            self.plan(0.0)
            if self.step is not None:
                self.apply()
        assert self.engine.is_idle, "some job never ended"
        self.hear(self.engine.poll())
        assert all(client.end is not None for client in self.clients.values())
        held, totals = self.engine.census()
        assert held == []
        assert totals["kv_block.free"] + totals["kv_block.cached"] == totals["kv_block.total"]
        self.engine.check()


class DeterministicMachine(LanguageMachine):
    deterministic = True
    num_blocks = 17


class RoomyMachine(LanguageMachine):
    num_blocks = 200


class TieredMachine(LanguageMachine):
    """Some of what is not in the tree is brought from a lower tier."""

    num_blocks = 17

    def elsewhere(self, job, table):
        return sum(table.tokens) % (len(table.tokens) + 5)


class PrefixFirstMachine(LanguageMachine):
    order = "longest_prefix"
    eviction = "cost"
    num_blocks = 17


class RunsMachine(LanguageMachine):
    """Decodes in runs of several steps, in a pool that is short of blocks."""

    steps_ahead = 5
    num_blocks = 20


class RoomyRunsMachine(RunsMachine):
    num_blocks = 200


class SlackMachine(LanguageMachine):
    order = batching = "slack"


class FeedbackMachine(LanguageMachine):
    order = batching = "mlfq"
    num_blocks = 17


for machine, examples in (
    (LanguageMachine, 150),
    (DeterministicMachine, 60),
    (RoomyMachine, 60),
    (TieredMachine, 100),
    (PrefixFirstMachine, 100),
    (RunsMachine, 120),
    (RoomyRunsMachine, 60),
    (SlackMachine, 60),
    (FeedbackMachine, 40),
):
    machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=50,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
TestTightPool = LanguageMachine.TestCase
TestDeterministic = DeterministicMachine.TestCase
TestRoomyPool = RoomyMachine.TestCase
TestPrefixesFromElsewhere = TieredMachine.TestCase
TestLongestPrefixFirst = PrefixFirstMachine.TestCase
TestRuns = RunsMachine.TestCase
TestRoomyRuns = RoomyRunsMachine.TestCase
TestLeastSlackFirst = SlackMachine.TestCase
TestFeedbackQueues = FeedbackMachine.TestCase
