"""The command line: what it refuses before anything starts, and what it says."""

import subprocess
import sys

import pytest

from cli.__main__ import main
from tests.flow.served import ROOT, served
from tests.patience import PATIENCE_S


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=ROOT,
        timeout=PATIENCE_S,
        text=True,
        capture_output=True,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--topology", "E1,P1"], "cluster.topology"),
        (["serve", "--model", "nowhere"], "model.path"),
        (["serve", "--set", "cache.blocks=3"], "blocks"),
        (["serve", "--config", "absent.toml"], "absent.toml"),
        (["ask", "--grpc", "127.0.0.1:9", "anybody there?"], "no server answers at 127.0.0.1:9"),
        (["ask", "absent.png", "what is this?"], "absent.png"),
        (["census", "--admin", "127.0.0.1:9"], "127.0.0.1:9"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words: list[str], said: str, capsys):
    assert main(words) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert told.startswith(f"triptych {words[0]}: ")


@pytest.mark.parametrize("command", ["serve", "ask", "census"])
def test_a_process_says_it_too_and_nothing_else(command: str):
    words = {"serve": ["--topology", "E1,P1"], "ask": ["absent.png", "?"]}
    done = run(command, *words.get(command, ["--admin", "127.0.0.1:9"]))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"triptych {command}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("door", ["--http", "--grpc"])
def test_a_batch_has_no_doors(door: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["batch", "absent.jsonl", "answers.jsonl", door, "127.0.0.1:9"])
    assert f"unrecognized arguments: {door}" in capsys.readouterr().err


def test_a_batch_needs_no_option_of_a_door(capsys):
    assert main(["batch", "absent.jsonl", "answers.jsonl", "--topology", "E1,P1"]) == 1
    assert "cluster.topology" in capsys.readouterr().err


async def test_a_taken_address_leaves_nothing_running():
    async with served("EPD1", 'cluster.backend="local"') as server:
        words = ["--model", "oracle", "--topology", "EPD1", "--http", server.http]
        done = run("serve", *words, "--set", "cluster.backend=process")
    assert done.returncode == 1
    assert "router.http: cannot listen" in done.stderr
