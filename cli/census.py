"""``triptych census``: who holds which block, lease, job and task of a running server."""

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any

from triptych.core.errors import Unavailable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--admin", metavar="HOST:PORT", default="127.0.0.1:8001")
    parser.add_argument("--key", metavar="KEY", default="", help="router.admin_key, if one is set")
    parser.add_argument("--json", action="store_true", help="print the server's answer as it is")


def run(words: argparse.Namespace) -> int:
    """Print the census; 0 if nothing is held, 3 if something is."""
    request = urllib.request.Request(f"http://{words.admin}/census")
    if words.key:
        request.add_header("authorization", f"Bearer {words.key}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            instances: list[dict[str, Any]] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise Unavailable(f"the admin door at {words.admin} answered {error.code}") from error
    except OSError as error:
        raise Unavailable(f"no admin door answers at {words.admin}") from error
    if words.json:
        json.dump(instances, sys.stdout, indent=2)
        print()
    else:
        _table(instances)
    return 3 if any(instance["held"] for instance in instances) else 0


def _table(instances: list[dict[str, Any]]) -> None:
    for instance in instances:
        totals = instance["totals"]
        pools = sorted({name.split(".")[0] for name in totals})
        sizes = ", ".join(
            f"{totals[f'{pool}.total']} {pool} ({totals[f'{pool}.free']} free,"
            f" {totals[f'{pool}.cached']} cached)"
            for pool in pools
        )
        print(f"{instance['instance']}: {sizes}")
        for row in instance["held"]:
            print(f"    {row['count']:6d} {row['kind']:16s} {row['owner']}")
        if not instance["held"]:
            print("    nothing held")
