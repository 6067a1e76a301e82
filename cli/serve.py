"""``triptych serve``: start everything, say where it listens, stop without a trace."""

import argparse
import asyncio
import signal
from pathlib import Path

from cli.progress import Progress
from cluster.build import start_cluster
from cluster.loop import run_loop
from router.build import Router, start_router
from triptych.core import log
from triptych.core.config import Config, load
from triptych.inputs.model_card import load_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_cluster_arguments(parser)
    parser.add_argument("--http", metavar="HOST:PORT", help="HTTP door")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="gRPC door")


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that starts instances, whether or not anybody may come in."""
    parser.add_argument("--model", metavar="DIR", help="model folder, or: oracle")
    parser.add_argument("--topology", metavar="T", help="such as E1,P1,D1 or EPD1")
    parser.add_argument("--config", metavar="FILE", type=Path, help="configuration (TOML)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="section.key=value"
    )


def configure(words: argparse.Namespace) -> Config:
    """The configuration that the words mean; options win over ``--set``, that over the file."""
    options = {
        "model.path": words.model,
        "cluster.topology": words.topology,
        "router.http": getattr(words, "http", None),
        "router.grpc": getattr(words, "grpc", None),
    }
    given = [f'{key}="{value}"' for key, value in options.items() if value is not None]
    return load(words.config, [*words.set, *given])


def run(words: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; 0 after a clean stop."""
    config = configure(words)
    load_card(config.model.path)  # a wrong folder is said before anything is started
    log.setup(config.log, "router")
    return run_loop(_serve(config))


async def _serve(config: Config) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    progress = Progress()
    starting = asyncio.create_task(_start(config, progress))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        progress.done()
        return 130
    router = await starting
    progress.done()
    print(_welcome(config, router), flush=True)
    await stopping
    print("stopping: no new requests, waiting for those in flight ...", flush=True)
    was_clean = await router.close()
    print("stopped" if was_clean else "stopped; requests in flight were ended", flush=True)
    return 0


async def _start(config: Config, progress: Progress) -> Router:
    cluster = await start_cluster(config, progress)
    try:
        return await start_router(config, cluster, progress)
    except BaseException:
        await cluster.close()
        raise


def _question(config: Config) -> str:
    if config.model.path.rstrip("/").endswith("examples/demo_model"):
        return 'examples/pictures/five-shapes.png "How many shapes are there?"'
    return 'PICTURE.png "What do you see?"'


def _welcome(config: Config, router: Router) -> str:
    return f"""\
triptych serves {router.model}: {config.cluster.topology} on {config.cluster.backend}
  HTTP  http://{router.http}/v1   (OpenAI-compatible)
  gRPC  {router.grpc}        (triptych.v1.Inference, with reflection)

Ask a question (another terminal):
  .venv/bin/triptych ask --grpc {router.grpc} {_question(config)}

Stop with Ctrl-C."""
