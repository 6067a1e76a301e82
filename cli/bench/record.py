"""``triptych bench record``: a server's ledger made into a workload that can be replayed.

Lengths, times and numbers: no text, no picture, no tenant's name.
"""

import argparse
import urllib.error
import urllib.request
from pathlib import Path

from bench.recording import arrivals
from bench.sources import recorded
from triptych.core.errors import Unavailable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--ledger", type=Path, help="its file (router.ledger); default: ask")
    parser.add_argument("--admin", metavar="HOST:PORT", default="127.0.0.1:8001")
    parser.add_argument("--key", default="", help="router.admin_key, if one is set")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON lines of requests")


def run(words: argparse.Namespace) -> int:
    """Read, turn, write."""
    data = words.ledger.read_bytes() if words.ledger else _asked(words.admin, words.key)
    found = arrivals(data.splitlines())
    recorded.write(words.out, found)
    tokens = sum(each.num_prompt for each in found)
    pictures = sum(len(each.images) for each in found)
    print(f"{len(found)} requests over {found[-1].at_s:.1f} s, {pictures} pictures, "
          f"{tokens} prompt tokens\nwritten: {words.out}")  # fmt: skip
    return 0


def _asked(admin: str, key: str) -> bytes:
    request = urllib.request.Request(f"http://{admin}/ledger/entries")
    if key:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        said = error.read(300).decode(errors="replace") or f"answered {error.code}"
        raise Unavailable(f"the admin door at {admin}: {said}") from error
    except OSError as error:
        raise Unavailable(f"no admin door answers at {admin}") from error
