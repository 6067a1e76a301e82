"""An engine with its executor, stepped by hand."""

import math

from scheduler.registry import policies
from tests.engine.scripted import ScriptedExecutor
from triptych.cache.kv import KvCache
from triptych.core.config import EngineConfig
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Drew
from triptych.engine.room import nowhere

SIZE = 4


class Bench:
    """An engine, its executor and everything it ever said."""

    def __init__(self, num_blocks=64, *, recomputes_items=True, size=SIZE, prefix=True,
                 elsewhere=nowhere, patience_s=math.inf, **config):  # fmt: skip
        options = {"token_budget": 16, "chunk_tokens": 8, "max_sequences": 8, **config}
        self.cache = KvCache(num_blocks, size, "model", prefix=prefix)
        settings = EngineConfig(**options)
        self.engine = LanguageEngine(
            settings,
            self.cache,
            policies(settings),
            recomputes_items=recomputes_items,
            max_tokens=1000,
            elsewhere=elsewhere,
            patience_s=patience_s,
        )
        self.executor = ScriptedExecutor(size)
        self.said = []
        self.now = 0.0

    def step(self):
        """One whole step; the segments computed."""
        step = self.engine.plan(self.now)
        if step is None:
            return ()
        self.said += step.outcomes
        if step.jobs:
            self.said += self.engine.apply(step, self.executor.execute(step.plan), self.now)
        self.engine.check()
        return step.plan.segments

    def run(self, limit=500):
        for _ in range(limit):
            if self.engine.is_idle or not self.step():
                return
        raise AssertionError("it never came to rest")

    def of(self, kind, job=None):
        return [said for said in self.said if isinstance(said, kind) and job in (None, said.job)]

    def tokens(self, job):
        return [said.token.id for said in self.of(Drew, job)]

    def spans(self, job):
        plans = self.executor.plans
        return [(s.start, s.end) for plan in plans for s in plan.segments if s.job == job]
