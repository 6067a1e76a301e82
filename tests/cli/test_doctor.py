"""`triptych doctor` names what is wrong and never changes anything."""

import argparse
import json
import socket

import pytest

from cli import doctor


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(words))


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    rows = json.loads(capsys.readouterr().out)["findings"]
    return {row["name"]: row for row in rows}


def test_every_line_of_the_table_says_what_follows_from_it(capsys):
    code = run("--set", "router.http=127.0.0.1:0", "--set", "router.grpc=127.0.0.1:0", "--json")
    rows = findings(capsys)
    assert {"GPU", "NCCL", "RDMA", "NIXL", "Redis"} <= rows.keys()
    assert {"shared memory", "memory", "open files"} <= rows.keys()
    assert {"-> device", "-> dtype", "-> transport", "-> instances", "-> model"} <= rows.keys()
    assert all(row["found"] and row["effect"] for row in rows.values())
    assert code == int(any(row["state"] == "problem" for row in rows.values()))


def test_a_taken_port_and_a_missing_model_are_problems(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code = run("--set", f"router.http={address}", "--set", "model.path=no/such", "--json")
    rows = findings(capsys)
    assert code == 1
    assert rows["http door"]["state"] == "problem"
    assert address in rows["http door"]["found"]
    assert rows["-> model"]["state"] == "problem"


def test_the_table_is_for_people(capsys):
    run("--set", "model.path=oracle", "--set", "model.dtype=bfloat16")
    out = capsys.readouterr().out
    assert "-> dtype" in out
    assert "bfloat16" in out


def test_a_wrong_key_is_named(capsys):
    assert run("--set", "modl.path=oracle") == 2
    assert "modl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--link-sizes", "4194304", "--link-bytes", "1048576"),
        ("--link-sizes", "1024"),
        ("--link-sizes", "4096", "--link-bytes", "1073741824"),
        ("--link-bytes", "8589934592"),
        ("--link-turns", "0"),
    ],
)
def test_links_that_cannot_be_measured_are_refused_with_the_limits(words, capsys):
    assert run("--links", *words) == 2
    said = capsys.readouterr()
    assert said.out == "" and "--link-sizes <= --link-bytes" in said.err
