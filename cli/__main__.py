"""The command ``triptych``: parses words and calls the room that does the work."""

import argparse
import sys
from typing import Protocol

from cli import (
    advise,
    ask,
    batch,
    census,
    doctor,
    plan,
    profile,
    reproduce,
    serve,
    simulate,
    validate,
)
from cli.bench import command as bench
from triptych import __version__
from triptych.core.errors import TriptychError


class Command(Protocol):
    """What a module of this package offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""
        ...

    def run(self, words: argparse.Namespace) -> int:
        """Do it; the exit status."""
        ...


COMMANDS: dict[str, tuple[Command, str]] = {
    "serve": (serve, "start the pools and both doors"),
    "ask": (ask, "ask a running server about pictures"),
    "batch": (batch, "answer a file of requests, as many at once as memory takes"),
    "bench": (bench, "measure a running server, compare, record, report"),
    "simulate": (simulate, "run a scenario under a virtual clock: table, report, trace"),
    "plan": (plan, "which instances to build of N GPUs, for a workload and its SLOs"),
    "profile": (profile, "measure this machine: a card of costs for the simulator"),
    "validate": (validate, "servers and simulations under the same requests, side by side"),
    "reproduce": (reproduce, "published results as simulations: bands, results, verdicts"),
    "doctor": (doctor, "what of this machine is usable, and what the server will do"),
    "advise": (advise, "which instances of a running server should change their role, and why"),
    "census": (census, "who holds which block, lease and task of a running server"),
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="triptych", description="Serve vision-language models.")
    top.add_argument("--version", action="version", version=f"triptych {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = parser().parse_args(arguments)
    module, _ = COMMANDS[words.command]
    try:
        return module.run(words)
    except TriptychError as error:
        print(f"triptych {words.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
