"""``triptych advise``: which instances of a running server should change their role, and why."""

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any

from triptych.core.errors import Unavailable

SHOWN = 5
"""Latest pieces of advice in the table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--url", metavar="URL", default="http://127.0.0.1:8001", help="the operators' door"
    )
    parser.add_argument("--key", metavar="KEY", default="", help="router.admin_key, if one is set")
    parser.add_argument("--json", action="store_true", help="print the server's answer as it is")


def run(words: argparse.Namespace) -> int:
    """Print the fleet, the load and the advice."""
    page = _fetch(words.url, words.key)
    if words.json:
        json.dump(page, sys.stdout, indent=2)
        print()
        return 0
    _fleet(page["members"])
    _load(page["load"])
    print(f"policy {page['policy']}, asked every {page['period_s']:g} s")
    for said in page["advice"][:SHOWN]:
        print(f"    {said['age_s']:6.0f} s ago  {said['text']}")
    if not page["advice"]:
        print("    nothing to change")
    for line in page["missing"]:
        print(f"note: {line}")
    return 0


def _fetch(url: str, key: str) -> dict[str, Any]:
    base = url if "://" in url else f"http://{url}"
    if not base.startswith(("http://", "https://")):
        raise Unavailable(f"{url} is not the address of an admin door")
    request = urllib.request.Request(f"{base.rstrip('/')}/advice")
    if key:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            page: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise Unavailable(f"the admin door at {url} answered {error.code}") from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"no admin door answers at {url}") from error
    return page


def _fleet(members: list[dict[str, Any]]) -> None:
    width = max([len(one["instance"]) for one in members] + [8])
    print(
        f"{'instance':{width}}  role  state      waiting (tokens)       running  busy   kv    slo"
    )
    for one in members:
        waiting = ", ".join(
            f"{each['jobs']} {stage} ({each['tokens']})" for stage, each in one["waiting"].items()
        )
        met = min(one["attainment"].values(), default=None)
        slo = "-" if met is None else f"{met:.0%}"
        print(
            f"{one['instance']:{width}}  {one['role']:4}  {one['standing']:9}"
            f"  {waiting or '-':21}  {one['running']:7}"
            f"  {one['utilisation']:4.0%}  {one['kv_occupancy']:4.0%}  {slo:>4}"
        )


def _load(load: dict[str, Any]) -> None:
    asked = {"encode": load["visual"], "prefill": load["text"] + load["visual"]}
    asked["decode"] = load["output"]
    print(f"load: {load['requests']:.2f} requests/s, {load['images']:.2f} pictures/s")
    for stage, tokens in asked.items():
        able = load["capacity"].get(stage, 0.0)
        fills = f" of {able:.0f} an instance can: fills {tokens / able:.2f}" if able else ""
        print(f"    {stage:8} {tokens:10.0f} tokens/s{fills}")
