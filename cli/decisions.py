"""``python -m cli.decisions``: placements per second, by policy and by number of instances.

Each decision is followed by what it does to the load, as in the router: a job comes on, another
goes, and the next view differs in those few instances. In memory; nothing is sent.
"""

import argparse
import random
import time
from collections import deque
from collections.abc import Iterator

from router.load import Load
from router.views import Views
from scheduler.forecast import Forecast
from scheduler.latency import Latencies
from scheduler.placement import Ask
from scheduler.registry import PLACEMENTS, placement
from triptych.core.handoff import EncodeJob, Endpoint, JobHeader, LanguageJob, TransferRef
from triptych.core.hashing import digest
from triptych.core.ids import Handle, InstanceId, JobId, SessionId
from triptych.core.layout import Layout
from triptych.core.lifecycle import InstanceState, Stage
from triptych.core.request import Item, Prompt, Sampling, Slo, StopRule
from triptych.core.view import ClusterView, Coverage, Description, Held, InstanceView, Route

KV = Layout("kv", "m", "bfloat16", (28, 2, 16, 4, 128), 16)
EMBEDDING = Layout("embedding", "m", "bfloat16", (16, 3584), 16)
ASK = Ask(Slo("interactive", 2.0, 0.05), num_output=128)
PICTURE, TEXT = 900, 300
"""Tokens."""
IN_FLIGHT = 4
"""Requests per instance."""


def members(number: int) -> ClusterView:
    """Encode, prefill and decode 1:2:3, eight instances a machine."""
    found = []
    for index in range(number):
        stage = (Stage.ENCODE, *[Stage.PREFILL] * 2, *[Stage.DECODE] * 3)[index % 6]
        description = Description(
            id=InstanceId(f"{stage.value}-{index:04d}@0"),
            role=(stage,),
            model="m",
            transfer=Endpoint(machine=f"machine-{index // 8}"),
            kv=None if stage is Stage.ENCODE else KV,
            embedding=None if stage is Stage.DECODE else EMBEDDING,
            num_kv_blocks=60_000,
            num_embedding_blocks=4_000,
            max_tokens=32_768,
            pid=index,
            memory_bytes={},
        )
        found.append(InstanceView(description, InstanceState.READY, {}, {}))
    return ClusterView(tuple(found))


class Traffic:
    """Prompts one after the other, and what placing them does to the loads."""

    def __init__(self, view: ClusterView, rng: random.Random) -> None:
        self._members = view
        self._rng = rng
        self._loads = {each.description.id: Load() for each in view.instances}
        self._views = Views()
        self._flying: deque[list[tuple[InstanceId, EncodeJob | LanguageJob]]] = deque()
        self._number = 0

    def view(self) -> ClusterView:
        """As the router has it."""
        return self._views.view(
            self._members, lambda base: self._loads[base.description.id].view(base, base.state)
        )

    def prompt(self) -> tuple[Prompt, Coverage]:
        """Zero to three pictures, and two instances that hold a beginning."""
        items, at = [], 50
        for _ in range(self._rng.randrange(4)):
            key = digest("item", self._rng.randbytes(8))
            items.append(Item(key, at, PICTURE, (1, 60, 60)))
            at += PICTURE + 5
        prompt = Prompt((0,) * (at + TEXT), tuple(items))
        names = [name for name in self._loads if not name.startswith(Stage.ENCODE.value)]
        held = Held((48, 48, 48))
        return prompt, Coverage({self._rng.choice(names): held for _ in range(2)})

    def follow(self, prompt: Prompt, route: Route) -> None:
        """The jobs of a route come on; the oldest request's go."""
        self._number += 1
        jobs = list(self._jobs(prompt, route))
        for name, job in jobs:
            self._loads[name].add(job, route.cached_tokens)
            self._views.touch(name)
        self._flying.append(jobs)
        if len(self._flying) > IN_FLIGHT * len(self._loads) // 6:
            for name, job in self._flying.popleft():
                self._loads[name].remove(job)
                self._views.touch(name)

    def _jobs(
        self, prompt: Prompt, route: Route
    ) -> Iterator[tuple[InstanceId, EncodeJob | LanguageJob]]:
        def header(stage: str) -> JobHeader:
            return JobHeader(JobId(f"{self._number}/{stage}"), SessionId("s"), 0, 60.0)

        for index, (item, name) in enumerate(zip(prompt.items, route.encode, strict=True)):
            if name is not None:
                yield name, EncodeJob(header(f"e{index}"), item, b"", "PNG", Handle(""))
        kv = TransferRef(Handle(""), 0, route.prefill, Endpoint(), "", len(prompt))
        work = LanguageJob(header("d"), prompt, Sampling(), StopRule(256), kv=kv)
        prefill = LanguageJob(
            header("p"), prompt, Sampling(), StopRule(256), publish=Handle("publish")
        )
        yield route.prefill, prefill
        yield route.decode, work


def measure(policy: str, number: int, seconds: float, seed: int = 0) -> float:
    """Decisions per second of processor time of ``choose``, the making of the view included."""
    latencies = Latencies()
    chooser = placement(policy, latencies, Forecast(latencies))
    traffic = Traffic(members(number), random.Random(seed))
    chooser.choose(traffic.view(), *_asked(traffic))  # what is computed once is no one's decision
    taken_s, count = 0.0, 0
    while taken_s < seconds:
        asked = _asked(traffic)
        start_s = time.process_time()
        route = chooser.choose(traffic.view(), *asked)
        taken_s += time.process_time() - start_s
        count += 1
        traffic.follow(asked[0], route)
    return count / taken_s


def _asked(traffic: Traffic) -> tuple[Prompt, frozenset[InstanceId], Coverage, Ask]:
    prompt, coverage = traffic.prompt()
    return prompt, frozenset(), coverage, ASK


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="decisions", description=__doc__)
    parser.add_argument("--instances", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--policies", nargs="+", default=sorted(PLACEMENTS), choices=PLACEMENTS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of deciding, each")
    words = parser.parse_args()
    print(f"{'policy':14}" + "".join(f"{number:>12}" for number in words.instances))
    for policy in words.policies:
        rates = [measure(policy, number, words.seconds) for number in words.instances]
        print(f"{policy:14}" + "".join(f"{rate:>10.0f}/s" for rate in rates), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
