"""``triptych advise`` against a real server: the fleet, the load, what a policy makes of them."""

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from tests.flow.served import ROOT, Served, served


async def advise(server: Served, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "advise", "--url", server.admin, *words]
    return await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, timeout=60, text=True, capture_output=True
    )


async def ask(http: httpx.AsyncClient, server: Served, words: str, max_tokens: int) -> int:
    body = {
        "model": "oracle",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": max_tokens,
    }
    answer = await http.post(f"http://{server.http}/v1/chat/completions", json=body)
    answer.raise_for_status()
    return answer.json()["usage"]["completion_tokens"]


async def test_a_queue_at_one_stage_is_seen_and_advised_about():
    """Two prefill instances stand idle while one decodes everything, and nobody encodes."""
    settings = (
        'cluster.backend="local"', 'router.roles="epdserve"', "router.roles_period_s=0.05",
        'router.admin_key="operator"', "engine.max_sequences=1", "cluster.verify_idle=false",
    )  # fmt: skip
    async with served("E1,P2,D1", *settings) as server, httpx.AsyncClient(timeout=60) as http:
        refused = await advise(server)
        assert refused.returncode == 1
        assert "answered 401" in refused.stderr
        assert (await http.get(f"http://{server.admin}/advice")).status_code == 401
        is_seen = asyncio.Event()

        async def keep_asking(number: int) -> None:
            while not is_seen.is_set():
                await ask(http, server, f"number {number}", 400)

        asking = [asyncio.create_task(keep_asking(number)) for number in range(12)]
        headers = {"authorization": "Bearer operator"}
        async with asyncio.timeout(30):
            while True:
                answer = await http.get(f"http://{server.admin}/advice", headers=headers)
                page = answer.json()
                if any("move prefill-" in said["text"] for said in page["advice"]):
                    break
                await asyncio.sleep(0.05)
        is_seen.set()
        await asyncio.gather(*asking)
        said = await advise(server, "--key", "operator", "--json")
        shown = await advise(server, "--key", "operator")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout).keys() == page.keys()
    assert {one["instance"]: one["role"] for one in page["members"]} == {
        "decode-0@0": "D", "encode-0@0": "E", "prefill-0@0": "P", "prefill-1@0": "P",
    }  # fmt: skip
    (decode,) = (one for one in page["members"] if one["role"] == "D")
    assert decode["running"] + decode["waiting"].get("decode", {"jobs": 0})["jobs"] > 1
    assert page["load"]["requests"] > 0.0
    assert page["load"]["images"] == page["load"]["visual"] == 0.0
    assert page["load"]["capacity"] == {}
    assert page["missing"] == ["no costs of steps are known: no capacities, no predictions"]
    lines = shown.stdout.splitlines()
    assert shown.returncode == 0, shown.stderr
    assert sum(" ready " in line for line in lines) == 4
    advised = [line for line in lines if "move prefill-" in line]
    assert advised, shown.stdout
    assert "to decode" in advised[0]


async def test_without_a_policy_there_is_a_fleet_and_no_advice():
    async with served("EPD1", 'cluster.backend="local"') as server:
        done = await advise(server)
    assert done.returncode == 0, done.stderr
    assert "epd-0@0" in done.stdout
    assert "nothing to change" in done.stdout
    assert "note: router.roles is static: nothing is advised" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["advise", "--url", "127.0.0.1:9"], "no admin door answers at 127.0.0.1:9"),
        (["advise", "--url", "file:///etc/passwd"], "is not the address of an admin door"),
        (["serve", "--set", 'router.roles="astrology"'], "router.roles: 'astrology'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words: list[str], said: str):
    done = subprocess.run(
        [sys.executable, "-m", "cli", *words], cwd=ROOT, timeout=60, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
