"""``triptych batch``: the right answers, once each, shared beginnings, and a cut that is mended."""

import base64
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from cli.__main__ import main
from tests.flow.served import ROOT

SETTINGS = ("cluster.backend=process", "cache.kv_blocks=96", "cluster.secret=the-oracle-hashes-it")
TINY = tuple(word for setting in SETTINGS for word in ("--set", setting))


def picture(seed: int) -> str:
    rng = random.Random(seed)
    image = Image.new("RGB", (28 * 3, 28 * 2), (rng.randrange(256), rng.randrange(256), 9))
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def line(name: str, url: str, text: str, **options: object) -> bytes:
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": text},
    ]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, **options}
    return msgspec.json.encode({"custom_id": name, "method": "POST", "body": body,
                                "url": "/v1/chat/completions"})  # fmt: skip


def write(path: Path, num: int, **options: object) -> None:
    urls = [picture(seed) for seed in range(5)]
    lines = [line(f"r{i}", urls[i % 5], f"what is {i}?", **options) for i in range(num)]
    path.write_bytes(b"\n".join(lines) + b"\n")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "cli", "batch", "--model", "oracle", *map(str, words)]


def answers(path: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for data in path.read_bytes().splitlines():
        answer = msgspec.json.decode(data)
        response = answer["response"]
        assert answer["custom_id"] not in found
        text = ""
        if response["status_code"] == 200:
            text = response["body"]["choices"][0]["message"]["content"]
        found[answer["custom_id"]] = (response["status_code"], text)
    return found


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=ROOT, text=True, capture_output=True, timeout=200)


@pytest.mark.slow
def test_any_order_and_any_topology_give_the_same_answers(tmp_path):
    write(tmp_path / "in", 40, max_tokens=9)
    one = run(tmp_path / "in", tmp_path / "a", "--topology", "EPD1", "--order", "given", *TINY)
    other = run(tmp_path / "in", tmp_path / "b", "--topology", "E1,P1,D1", *TINY)
    assert (one.returncode, other.returncode) == (0, 0), one.stderr + other.stderr
    assert answers(tmp_path / "a") == answers(tmp_path / "b")
    assert len(answers(tmp_path / "a")) == 40
    assert "5 groups" in other.stderr
    assert "40 answers, 0 of them errors" in other.stdout


@pytest.mark.slow
def test_a_batch_that_was_killed_goes_on(tmp_path):
    write(tmp_path / "in", 300, max_tokens=40)
    out = tmp_path / "out"
    words = command(tmp_path / "in", out, "--topology", "EPD1", *TINY)
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as first:
        while not out.exists() or out.read_bytes().count(b"\n") < 5:
            assert first.poll() is None
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
    torn = b'{"id":"batch_req_9","custom_id":"torn","resp'
    before = answers(out) if out.read_bytes().endswith(b"\n") else None
    with out.open("ab") as file:
        file.write(torn)
    second = run(tmp_path / "in", out, "--topology", "EPD1", *TINY)
    assert second.returncode == 0, second.stderr
    assert set(answers(out)) == {f"r{i}" for i in range(300)}
    if before:
        assert before.items() <= answers(out).items()
    assert "were there before" in second.stdout


@pytest.mark.slow
def test_what_is_wrong_with_a_request_is_its_answer(tmp_path):
    good = line("good", picture(1), "what?", max_tokens=3)
    wrong = line("wrong", "https://example.org/a.png", "what?")
    (tmp_path / "in").write_bytes(good + b"\n\n" + wrong + b"\n")
    done = run(tmp_path / "in", tmp_path / "out", "--topology", "EPD1", *TINY)
    assert done.returncode == 1
    assert {name: status for name, (status, _) in answers(tmp_path / "out").items()} == {
        "good": 200,
        "wrong": 400,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"nonsense\n", "line 1: not JSON"),
        (b'{"custom_id": "a"}\n', "line 1"),
        (line("a", "data:,", "x") + b"\n" + line("a", "data:,", "x") + b"\n", "line 2: custom_id"),
    ],
)
def test_a_file_that_is_no_batch_is_refused_before_anything_starts(tmp_path, text, said, capsys):
    (tmp_path / "in").write_bytes(text)
    assert main(command(tmp_path / "in", tmp_path / "out")[3:]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_of_something_else_is_left_alone(tmp_path):
    write(tmp_path / "in", 1)
    (tmp_path / "out").write_text("my thesis\n")
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 1
    assert "output" in done.stderr
    assert (tmp_path / "out").read_text() == "my thesis\n"
