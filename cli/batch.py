"""``triptych batch``: a file of requests in, a file of answers out, as fast as memory allows.

Starts pools of its own, runs every request that has no answer yet, and stops. Knows what a person
sees of it; the order and the window are ``router.offline``'s.
"""

import argparse
import asyncio
import time
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path

import msgspec

from cli import serve
from cli.progress import Progress
from cluster.build import start_cluster
from cluster.loop import run_loop
from router import offline
from router.build import Core, start_core
from router.doors.auth import PUBLIC
from router.doors.batch_file import Answers, Place, Requests
from router.doors.intake import Intake
from router.doors.openai_request import Chat
from triptych.core import log
from triptych.core.clock import MonotonicClock
from triptych.core.config import Config
from triptych.core.errors import RequestError
from triptych.core.hashing import tenant_salt
from triptych.core.lifecycle import Stage
from triptych.core.request import Prompt, Request
from triptych.inputs.model_card import load_card

UNBOUNDED = 1_000_000
"""Requests that a batch may have waiting: its own window is the bound."""
WEEK_S = 7 * 86_400.0
"""Deadline of a request of a batch: nobody waits for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("input", type=Path, help="requests, a JSON object a line")
    parser.add_argument("output", type=Path, help="answers; what is there already is not run again")
    parser.add_argument(
        "--order",
        choices=("shared", "given"),
        default="shared",
        help="shared: requests with a common beginning together (default)",
    )
    serve.add_cluster_arguments(parser)


def run(words: argparse.Namespace) -> int:
    """Run the batch; 0 if every request has an answer, 1 if some have an error in its place."""
    config = _for_batch(serve.configure(words))
    card = load_card(config.model.path)
    log.setup(config.log, "batch")
    model = config.model.name or card.name
    with ExitStack() as stack:  # a wrong file is said before anything is started
        intake = Intake(config, card, MonotonicClock())
        requests = stack.enter_context(closing(Requests(words.input, intake, model)))
        places = list(requests.places())
        answers = stack.enter_context(closing(Answers(words.output, model)))
        batch = _Batch(requests, answers, places)
        return run_loop(_run(config, batch, is_grouped=words.order == "shared"))


def _for_batch(config: Config) -> Config:
    """Bounds that protect a server from its clients are no use here."""
    replace = msgspec.structs.replace
    limits = replace(
        config.limits,
        max_requests=UNBOUNDED,
        max_requests_per_tenant=UNBOUNDED,
        default_deadline_s=WEEK_S,
        max_deadline_s=WEEK_S,
    )
    engine = replace(config.engine, max_waiting=UNBOUNDED)
    return replace(config, limits=limits, engine=engine)


async def _run(config: Config, batch: "_Batch", *, is_grouped: bool) -> int:
    progress = Progress()
    async with AsyncExitStack() as stack:
        cluster = await start_cluster(config, progress)
        stack.push_async_callback(cluster.close)
        core = await start_core(config, cluster)
        stack.push_async_callback(core.close)
        await asyncio.to_thread(batch.read, core, progress)
        num_wrong = await batch.run(core, progress, is_grouped=is_grouped)
    progress.done()
    print(batch.summary(), flush=True)
    return 1 if num_wrong else 0


class _Batch:
    """One run over one file."""

    def __init__(self, requests: Requests, answers: Answers, places: list[Place]) -> None:
        self._requests = requests
        self._answers = answers
        self._places = [place for place in places if place.custom_id not in answers.done]
        self._prompts: list[Prompt] = []
        self._max_tokens: list[int] = []
        self._chats: dict[int, Chat] = {}
        """Of the requests in flight, pictures and all."""
        self._num_before = len(answers.done)
        self._num_wrong = 0
        self._prompt_tokens = self._cached_tokens = self._output_tokens = 0
        self._seconds = 0.0

    def read(self, core: Core, progress: Progress) -> None:
        """Expand every request that has no answer; what is wrong with one is its answer."""
        salt = tenant_salt(core.secret, PUBLIC)
        places, self._places = self._places, []
        for place in places:
            try:
                request = self._requests.chat(place).request
                prompt = core.service.prompts.expand(request.messages, request.pictures, salt)
            except RequestError as error:
                self._answers.write_error(place, error)
                self._num_wrong += 1
                continue
            self._places.append(place)
            self._prompts.append(prompt)
            self._max_tokens.append(request.stop.max_tokens * request.num_choices)
            progress(f"read {len(self._places)} of {len(places)} requests")

    async def run(self, core: Core, progress: Progress, *, is_grouped: bool) -> int:
        """Run what was read. How many requests have an error for an answer."""
        plan = offline.plan(self._prompts, self._max_tokens, grouped=is_grouped)
        tasks = [self._task(index) for index in range(len(self._places))]
        began_s = time.monotonic()
        capacity = _capacity(core)
        async for outcome in offline.run(core.service, tasks, plan.groups, capacity):
            self._take(outcome)
            self._seconds = time.monotonic() - began_s
            progress(self._state(plan, len(tasks)))
        return self._num_wrong

    def summary(self) -> str:
        """What a person wants to know at the end."""
        rate = self._output_tokens / self._seconds if self._seconds else 0.0
        cached = self._cached_tokens / self._prompt_tokens if self._prompt_tokens else 0.0
        lines = [
            f"{len(self._answers.done)} answers, {self._num_wrong} of them errors;"
            f" {self._num_before} were there before",
            f"  {self._seconds:.1f} s, {rate:.0f} output tokens/s,"
            f" {self._prompt_tokens} prompt tokens, {cached:.0%} of them from the cache",
        ]
        return "\n".join(lines)

    def _task(self, index: int) -> offline.Task:
        def make() -> Request:
            chat = self._chats[index] = self._requests.chat(self._places[index])
            return chat.request

        return offline.Task(index, make, len(self._prompts[index]), self._max_tokens[index])

    def _take(self, outcome: offline.Outcome) -> None:
        place, chat = self._places[outcome.number], self._chats.pop(outcome.number)
        if outcome.final is None:
            self._num_wrong += 1
            if outcome.error is not None:
                self._answers.write_error(place, outcome.error)
            return
        usage = outcome.final.usage
        self._prompt_tokens += usage.prompt_tokens
        self._cached_tokens += usage.cached_tokens
        self._output_tokens += usage.completion_tokens
        self._answers.write(place, chat, outcome.deltas, outcome.final)

    def _state(self, plan: offline.Plan, num_all: int) -> str:
        num_done = len(self._answers.done) - self._num_before
        left_s = self._seconds / max(1, num_done) * max(0, num_all - num_done)
        return (
            f"{num_done} of {num_all} answers, {len(plan.groups)} groups, about {left_s:.0f} s left"
        )


def _capacity(core: Core) -> int:
    """Tokens of KV that the smaller of the two language pools holds."""
    view = core.dispatcher.view()
    pools = []
    for stage in (Stage.PREFILL, Stage.DECODE):
        instances = [each.description for each in view.serving(stage)]
        pools.append(
            sum(one.num_kv_blocks * (one.kv.block_size if one.kv else 0) for one in instances)
        )
    return min(pools)
