"""One real server (Ray, three pools, the demo model) asked through every door by real clients.

All of them must say the same words: curl, the ``openai`` package, ``triptych ask``, the typed
client, and a reflection client that has never seen our code.
"""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio
from grpc_requests import Client as ReflectionClient

from tests import checkpoints
from tests.flow.served import ROOT, Served, served
from tests.patience import PATIENCE_S
from triptych.client import AsyncClient, Client

PICTURE = ROOT / "examples" / "pictures" / "five-shapes.png"
QUESTION = "How many shapes are there?"

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Served]:
    settings = ('model.name="demo"', 'router.admin_key="operator"')
    async with served("E1,P1,D1", *settings, model=str(checkpoints.DEMO)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answer(server: Served) -> str:
    """What the typed client hears."""

    def ask() -> str:
        with Client(server.grpc) as client:
            parts = list(client.generate(QUESTION, pictures=[PICTURE], max_tokens=12))
        final = parts[-1].final
        assert final.usage.image_tokens > 0
        assert [name.split("-")[0] for name in final.timeline.route] == [
            "encode",
            "prefill",
            "decode",
        ]
        assert 0 < final.timeline.ttft_s <= final.timeline.total_s
        return "".join(part.text for part in parts)

    text = await asyncio.to_thread(ask)
    assert text.strip()
    return text


def body(stream: bool = False, **more: object) -> dict:
    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": content}]
    fixed = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 12}
    return {**fixed, "stream": stream, **more}


async def test_openai_package(server: Served, answer: str):
    async with openai.AsyncOpenAI(base_url=f"http://{server.http}/v1", api_key="none") as client:
        assert [model.id async for model in client.models.list()] == ["demo"]
        whole = await client.chat.completions.create(**body())
        assert whole.choices[0].message.content == answer
        assert whole.usage.prompt_tokens > 20
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                **body(stream=True, stream_options={"include_usage": True}, logprobs=True, n=2)
            )
        ]
    for choice in (0, 1):
        text = "".join(
            each.delta.content or ""
            for chunk in chunks
            for each in chunk.choices
            if each.index == choice
        )
        assert text == answer
    assert chunks[-1].usage.completion_tokens == 2 * whole.usage.completion_tokens
    logprobs = [each.logprobs for chunk in chunks for each in chunk.choices if each.logprobs]
    assert all(entry.logprob <= 0 for each in logprobs for entry in each.content)


async def test_openai_package_hears_a_typed_refusal(server: Served):
    async with openai.AsyncOpenAI(base_url=f"http://{server.http}/v1", api_key="none") as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**body(top_p=7.0))
    assert "top_p" in str(refused.value)


async def test_curl(server: Served, answer: str, tmp_path: Path):
    (tmp_path / "body.json").write_text(json.dumps(body(stream=True)))
    words = ["curl", "-sN", f"http://{server.http}/v1/chat/completions"]
    words += ["-H", "Content-Type: application/json", "-d", f"@{tmp_path / 'body.json'}"]
    said = await asyncio.to_thread(subprocess.check_output, words, timeout=60, text=True)
    events = [line.removeprefix("data: ") for line in said.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"] for event in events[:-1]]
    assert "".join(each[0]["delta"].get("content") or "" for each in deltas if each) == answer


async def test_ask(server: Served, answer: str):
    words = [sys.executable, "-m", "cli", "ask", "--grpc", server.grpc, str(PICTURE), QUESTION]
    done = await asyncio.to_thread(
        subprocess.run, words, cwd=ROOT, timeout=60, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == answer.strip()
    for part in ("queue", "encode", "transfer", "prefill", "first token", "TPOT"):
        assert part in done.stderr


async def test_reflection_client(server: Served, answer: str):
    picture = base64.b64encode(PICTURE.read_bytes()).decode()
    parts = [{"picture": picture}, {"text": QUESTION}]
    message = {"messages": [{"role": "user", "parts": parts}], "max_tokens": 12}

    def ask() -> list[dict]:
        client = ReflectionClient(server.grpc)
        try:
            return list(client.service("triptych.v1.Inference").Generate(message))
        finally:
            client.__exit__(None, None, None)

    answers = await asyncio.to_thread(ask)
    assert "".join(each.get("delta", {}).get("text", "") for each in answers) == answer


async def test_cancelled_in_the_middle_leaves_nothing(server: Served):
    async with AsyncClient(server.grpc) as client:
        started = 0
        async for _ in client.generate(QUESTION, pictures=[PICTURE], ignore_eos=True):
            started += 1
            if started == 3:
                break
    async with httpx.AsyncClient(timeout=10) as http:
        async with asyncio.timeout(PATIENCE_S):
            while any(row["held"] for row in await admin(http, server, "census")):
                await asyncio.sleep(0.05)
        ledger = await admin(http, server, "ledger")
    assert ledger["open"] == 0
    assert ledger["outcomes"]["cancelled"] >= 1


async def test_operators_see_it(server: Served):
    async with httpx.AsyncClient(timeout=10) as http:
        assert (await http.get(f"http://{server.admin}/census")).status_code == 401
        instances = await admin(http, server, "instances")
        metrics = (await http.get(f"http://{server.http}/metrics")).text
        assert (await http.get(f"http://{server.http}/ready")).status_code == 200
    memory = {row["id"].split("-")[0]: row["memory_bytes"] for row in instances}
    assert memory["encode"].get("kv", 0) == 0
    assert memory["decode"].get("embedding", 0) == 0
    assert 'triptych_router_requests_total{outcome="completed"}' in metrics
    words = [sys.executable, "-m", "cli", "census", "--admin", server.admin, "--key", "operator"]
    done = await asyncio.to_thread(
        subprocess.run, words, cwd=ROOT, timeout=60, text=True, capture_output=True, check=True
    )
    assert done.stdout.count("nothing held") == 3


async def admin(http: httpx.AsyncClient, server: Served, page: str):
    headers = {"authorization": "Bearer operator"}
    answer = await http.get(f"http://{server.admin}/{page}", headers=headers)
    answer.raise_for_status()
    return answer.json()
