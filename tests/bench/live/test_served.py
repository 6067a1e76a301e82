"""The measuring commands against a real server: oracle model, real doors, the whole path."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bench import study
from bench.client import Target
from bench.figures import figures
from bench.live.http import HttpSender
from bench.live.measure import Bench, Contender, Load
from bench.sources.registry import workload
from bench.workload import Arrival, Image, Text
from cli.__main__ import main
from cli.bench.grpc_sender import GrpcSender
from tests.flow.served import Served, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory) -> AsyncIterator[Served]:
    ledger = tmp_path_factory.mktemp("ledger") / "ledger"
    settings = ('cluster.backend="local"', f'router.ledger="{ledger}"')
    async with served("E1,P1,D1", *settings) as running:
        yield running


async def command(*words) -> int:
    return await asyncio.to_thread(main, ["bench", *map(str, words)])


SMALL = "synthetic:fixed,size=112x84,text=24,output=8"
LOAD = ("--workload", SMALL, "--duration", 1.5, "--warmup", 0.5, "--max-late-ms", 5000)


class Talk:
    """Two conversations of two turns each."""

    name = "talk"

    def arrivals(self, rate, duration_s, seed):
        for number in range(2):
            opening = (Image(number, 112, 84), Text(10 + number, 30))
            name = f"s{number}"
            yield Arrival(0.1 * number, opening, 8, answer=90 + number, session=name)
            later = (*opening, Text(90 + number, 8), Text(20 + number, 10))
            yield Arrival(0.0, later, 6, session=name, after_s=0.05)


def senders(server):
    yield "http", HttpSender(Target.of(f"http://{server.http}/v1"))
    yield "plain", HttpSender(Target.of(server.http), is_plain=True)
    yield "grpc", GrpcSender(server.grpc)


async def test_every_transport_tells_the_same(server: Served):
    runs = {}
    load = Load(Talk(), duration_s=4.0, warmup_s=0.0, seeds=(0,), max_late_s=60.0)
    for name, sender in senders(server):
        runs[name] = await Bench(load).run(Contender(name, sender, 1.0), None, 0)
        await sender.close()
    for run in runs.values():
        assert [row.status for row in run.rows] == ["ok"] * 4, run.rows
        assert sorted(len(row.token_times_s) for row in run.rows) == [6, 6, 8, 8]
        assert {row.turn for row in run.rows} == {0, 1}
        for row in run.rows:
            assert row.image_tokens == 12 and row.prompt_tokens > 40
            assert row.phases["prefill"] > 0 and row.phases["decode"] > 0
            assert [name.split("-")[0] for name in row.route][-2:] == ["prefill", "decode"]
        assert figures(run).ttft_parts["prefill"] > 0
        assert "tokens a word" in run.notes["text"]
    tokens = {name: sorted(row.prompt_tokens for row in run.rows) for name, run in runs.items()}
    assert tokens["http"] == tokens["plain"] == tokens["grpc"]


async def test_lengths_are_right_on_average(server: Served):
    sender = HttpSender(Target.of(server.http))

    class Long:
        name = "long"

        def arrivals(self, rate, duration_s, seed):
            return iter([Arrival(0.05 * n, (Text(n, 400),), 2) for n in range(8)])

    load = Load(Long(), 2.0, 0.0, (0,), max_late_s=60.0)
    run = await Bench(load).run(Contender("S", sender, 1.0), None, 0)
    mean = sum(row.prompt_tokens for row in run.rows) / len(run.rows)
    assert mean == pytest.approx(400, rel=0.1), "the template's own are few"


async def test_run_writes_runs_page_and_trace(server: Served, tmp_path, capsys):
    out, page, trace = tmp_path / "runs.json", tmp_path / "r.html", tmp_path / "t.json"
    files = ("--out", out, "--report", page, "--trace", trace)
    status = await command("run", "--url", f"http://{server.http}", "--rate", 6, *LOAD, *files)
    assert status == 0
    said = capsys.readouterr().out
    assert "attained %" in said and str(page) in said
    (run,) = study.read(out).runs
    assert {row.status for row in run.rows} == {"ok"}
    assert run.workload == SMALL and run.rate == 6.0
    assert json.loads(trace.read_text())["traceEvents"]
    again = tmp_path / "again.html"
    assert await command("report", out, out, "-o", again, "--price", 2.5) == 0
    assert again.stat().st_size > 50_000


async def test_goodput_over_grpc(server: Served, capsys):
    words = ("--url", f"grpc://{server.grpc}", "--start", 4, "--greatest", 8)
    status = await command("goodput", *words, "--workload", SMALL, "--duration", 1, "--warmup", 0.2,
                           "--max-late-ms", 5000)  # fmt: skip
    assert status == 0
    assert "goodput at 90%: " in capsys.readouterr().out
    assert await command("goodput", *words, "--seed", "1,1,2", *LOAD) == 1, "three seeds at least"


async def test_servers_are_compared_in_turns(server: Served, capsys):
    servers = ("--server", f"H=http://{server.http}@2", "--server", f"G=grpc://{server.grpc}")
    assert await command("compare", *servers, "--rates", "3", "--seed", 0, *LOAD) == 0
    said = capsys.readouterr().out
    assert "| H " in said and "| G " in said


async def test_what_was_asked_can_be_asked_again(server: Served, tmp_path, capsys):
    path = tmp_path / "recorded.jsonl"
    assert await command("record", "--admin", server.admin, "-o", path) == 0
    assert "pictures" in capsys.readouterr().out
    text = path.read_text()
    assert "public" not in text and "tenant-1" in text
    source = workload(f"ledger:{path}")
    found = list(source.arrivals(None, 1e9, 0))
    assert found[0].at_s == 0.0 and len(found) > 10
    talks = [each for each in found if each.num_output == 6]
    assert talks and all(each.images[0].num_tokens == 12 for each in talks)
    pictures = {each.images[0].content for each in talks}
    assert len(pictures) == 2, "the same two pictures, over every transport"
    beginnings = {each.parts[0] for each in found if each.images}
    assert len(beginnings) < len(found), "equal beginnings are seen to be equal"


async def test_what_is_wrong_is_said_in_a_line(server: Served, tmp_path, capsys):
    assert await command("run", "--url", "http://127.0.0.1:9") == 1
    assert await command("run", "--url", "ftp://x", *LOAD) == 1
    assert "ftp" in capsys.readouterr().err
    assert await command("compare", *LOAD) == 1
    assert await command("record", "--admin", "127.0.0.1:9", "-o", tmp_path / "x") == 1
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert await command("report", bad) == 1
    assert "not a file of runs" in capsys.readouterr().err
