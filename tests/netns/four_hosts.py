"""A cluster on four hosts: ``python -m tests.netns.four_hosts`` (as root, see ``network``).

    encode | prefill | decode-0 | decode-1 and the router, one network namespace each

First the oracle over every cross-host transport: exact tokens. Then the demo model, widened so that
its KV has bytes enough, while the link of the decode instance that is used most is shaped to 100
Mbit/s: placement must move away from it, and the answers stay.
"""

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import msgspec

from bench.overlap import wide
from cluster.host import InstanceSpec
from cluster.process import ProcessHost
from router.answer import Final
from tests.flow.drawn import parts, words
from tests.flow.harness import Flow, config, flow
from tests.netns.network import Network, network
from triptych.core.request import Request

NAMES = ("encode", "prefill", "decode0", "decode1")
ROUTER = "decode1"
ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "demo_model"
TOPOLOGY = "E1,P1,D2"
AT_ONCE = 2
"""Few, so that queues do not outweigh links."""


class Wrong(AssertionError):
    """The cluster did what it must not."""


def host_of(net: Network) -> ProcessHost:
    """Starts every instance on the host of its name."""

    def place(spec: InstanceSpec) -> tuple[InstanceSpec, tuple[str, ...]]:
        word, number = spec.id.partition("@")[0].split("-")
        name = word if word in NAMES else word + number
        transfer = msgspec.structs.replace(spec.config.transfer, host=net.address(name))
        there = msgspec.structs.replace(spec.config, transfer=transfer)
        return msgspec.structs.replace(spec, config=there), net.words(name)

    return ProcessHost(place)


async def exact(net: Network, transport: str, count: int = 24) -> None:
    """The oracle's tokens for pictures and words, every instance on a host of its own."""
    rng = random.Random(f"four hosts {transport}")
    settings = config(TOPOLOGY, f'transfer.transport="{transport}"', backend="process")
    async with flow(settings, host_of(net)) as running:
        requests = [running.request(parts(rng, rng.choice([0, 1, 2]), [])) for _ in range(count)]
        answers = await _all(running, requests)
        for request, (tokens, _) in zip(requests, answers, strict=True):
            if tokens != await running.oracle_answer(request):
                raise Wrong(f"{transport}: {request.id} has other tokens than the oracle")
        routes = {name for _, final in answers for name in final.timeline.route}
        hosts = {name.partition("@")[0] for name in routes}
    if hosts != {"encode-0", "prefill-0", "decode-0", "decode-1"}:
        raise Wrong(f"{transport}: only {sorted(hosts)} were used")
    print(f"{transport}: {count} requests on four hosts, all tokens exact", flush=True)


async def moves_away(net: Network, transport: str, count: int = 24) -> None:
    """Share of requests that an instance decodes, before and after its link became slow."""
    with tempfile.TemporaryDirectory() as folder:
        wide.write(DEMO, Path(folder))
        await _moves_away(net, transport, count, folder)


async def _moves_away(net: Network, transport: str, count: int, model: str) -> None:
    settings = ["cache.prefix=false", "limits.max_text_bytes=1000000"]
    rng = random.Random("long prompts")
    texts = [words(rng, 400, 500) for _ in range(8)]
    async with flow(config("EPD1", *settings, model=model)) as alone:
        asked = [alone.request([text], max_tokens=6) for text in texts]
        expected = [await alone.tokens(request) for request in asked]
    settings.append(f'transfer.transport="{transport}"')
    async with flow(config(TOPOLOGY, *settings, model=model, backend="process"),
                    host_of(net)) as running:  # fmt: skip

        async def shares(label: str) -> Counter[str]:
            asked = [running.request([texts[n % 8]], max_tokens=6) for n in range(count)]
            answers = await _all(running, asked)
            if [tokens for tokens, _ in answers] != [expected[n % 8] for n in range(count)]:
                raise Wrong(f"{transport}: answers differ from the monolith's")
            used = Counter(_decode(final) for _, final in answers)
            each = ", ".join(
                f"{name} {number / count:.0%}" for name, number in sorted(used.items())
            )
            ttlt = sorted(final.timeline.total_s for _, final in answers)[count // 2]
            print(
                f"{transport}, {label}: {each}; median time of a request {ttlt:.2f} s", flush=True
            )
            return used

        await shares("warming up")
        [(slow, before)] = (await shares("equal links")).most_common(1)
        net.shape(slow.replace("-", ""), "100mbit")
        for _ in range(2):
            await shares(f"{slow} behind 100 Mbit/s, learning")
        after = (await shares(f"{slow} behind 100 Mbit/s"))[slow]
        net.unshape(slow.replace("-", ""))
    if after > before / 2:
        raise Wrong(f"{transport}: placement stayed: {before} before, {after} after")


async def _all(running: Flow, requests: Iterable[Request]) -> list[tuple[list[int], Final]]:
    """Tokens and final words of requests, a few at a time, in order."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(request: Request) -> tuple[list[int], Final]:
        tokens: list[int] = []
        async with room:
            async for part in running.stream(request):
                if isinstance(part, Final):
                    return tokens, part
                tokens += [token.id for token in part.tokens]
        raise Wrong(f"{request.id} has no end")

    return list(await asyncio.gather(*map(one, requests)))


def _decode(final: Final) -> str:
    return final.timeline.route[-1].partition("@")[0]


STEPS = {"exact": exact, "placement": moves_away}


def main() -> int:
    """Make the network and run inside it; 0 if everything held."""
    top = argparse.ArgumentParser(prog="four_hosts", description=__doc__)
    top.add_argument("--transports", default="tcp", help="separated by commas")
    top.add_argument("--only", choices=tuple(STEPS), help="one of the two")
    top.add_argument("--inside", default="", help=argparse.SUPPRESS)
    given = top.parse_args()
    if given.inside:
        return _inside(given, Network(given.inside, NAMES))
    signal.signal(signal.SIGTERM, _stop)
    with network(NAMES) as net:
        command = (sys.executable, "-m", "tests.netns.four_hosts", *sys.argv[1:])
        inside = ("--inside", net.space("").rstrip("-"))
        environment = {**os.environ, "UCX_TLS": "tcp"}  # what nixl may use between hosts
        done = subprocess.run(
            [*net.words(ROUTER), *command, *inside], check=False, cwd=ROOT, env=environment
        )
        return done.returncode


def _inside(given: argparse.Namespace, net: Network) -> int:
    try:
        for step in [STEPS[given.only]] if given.only else STEPS.values():
            for transport in given.transports.split(","):
                asyncio.run(step(net, transport))
    except Wrong as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
