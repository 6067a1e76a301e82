"""``triptych bench``: measure a running server, compare servers, record one, write a report.

Knows the words of the command line; what they do is in the files beside this one.
"""

import argparse
from typing import Protocol

from cli.bench import compare, goodput, record, report, run_once
from triptych.core.errors import ConfigError, Unavailable


class Part(Protocol):
    """One measuring command."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its options."""
        ...

    def run(self, words: argparse.Namespace) -> int:
        """Do it; the exit status."""
        ...


PARTS: dict[str, tuple[Part, str]] = {
    "run": (run_once, "one run of a workload at one rate"),
    "goodput": (goodput, "the greatest rate that keeps the promises, by bisection"),
    "compare": (compare, "several servers or topologies in turns, at several rates"),
    "record": (record, "a workload out of a running server's ledger, without its words"),
    "report": (report, "a page, a trace or a table out of a file of runs"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command: those of every part, which its help shows too."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    usages = []
    for name, (module, summary) in PARTS.items():
        part = parts.add_parser(name, help=summary, description=summary)
        module.add_arguments(part)
        usages.append(part.format_usage())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(usages)


def run(words: argparse.Namespace) -> int:
    """Run the part; what is wrong with its words or its server is said in one line."""
    module, _ = PARTS[words.part]
    try:
        return module.run(words)
    except ValueError as error:
        raise ConfigError(f"{words.part}: {error}") from error
    except OSError as error:
        raise Unavailable(str(error), public=str(error)) from error
