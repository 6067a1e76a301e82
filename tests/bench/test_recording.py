"""A ledger made into a workload."""

import json

import pytest

from bench.recording import arrivals
from bench.workload import Image, Text


def accepted(request, at_s, blocks, tokens, pictures=(), tenant="acme", **more):
    asked = {"arrival_s": at_s, "prompt_tokens": tokens, "max_tokens": 99, "slo": "strict",
             "block_tokens": 4, "blocks": blocks, "pictures": list(pictures), **more}  # fmt: skip
    return json.dumps(
        {"at_s": at_s + 0.1, "request": request, "state": "accepted", "tenant": tenant,
         "asked": asked}
    )  # fmt: skip


def ended(request, state="completed", num_tokens=7):
    return json.dumps({"at_s": 9.0, "request": request, "state": state, "num_tokens": num_tokens})


def test_what_was_equal_is_equal_again():
    lines = [
        accepted("a", 10.0, ["0a", "0b"], 10),
        accepted("b", 9.0, ["0a", "0c"], 9, tenant="other"),
        json.dumps({"at_s": 9.0, "request": "b", "state": "prefilling"}),
        ended("a"),
        ended("b", "deadline_exceeded", 2),
    ]
    first, second = arrivals(lines)
    assert (first.at_s, second.at_s) == (0.0, 1.0), "in order of arrival, the first at 0"
    assert (first.tenant, second.tenant) == ("tenant-1", "tenant-2")
    assert (first.num_output, second.num_output) == (99, 7), "what was cut may run on"
    assert [part.num_tokens for part in second.parts] == [4, 4, 2]
    assert first.parts[0] == second.parts[0], "the shared beginning"
    assert first.parts[1] != second.parts[1]
    assert first.parts[2].seed != second.parts[2].seed, "no key: nobody else begins so"
    assert first.slo == "strict"


def test_pictures_stand_where_they_stood():
    line = accepted("a", 1.0, ["0a", "0b", "0c"], 14, [("ff", 2, 3, 2)])
    (found,) = arrivals([line, ended("a")])
    assert found.parts == (
        Text(0x0A, 2), Image(0xFF, 84, 56), Text(0x0C, 4), Text(found.parts[-1].seed, 2),
    )  # fmt: skip
    assert found.num_prompt == 14
    custom = accepted("a", 1.0, [], 3, slo="custom")
    assert arrivals([custom, ended("a")])[0].slo == "batch"


def test_what_cannot_be_replayed_is_said():
    with pytest.raises(ValueError, match="line 1"):
        arrivals(["no json"])
    old = json.dumps({"request": "a", "state": "accepted", "tenant": "acme"})
    with pytest.raises(ValueError, match="what was asked"):
        arrivals([old, ended("a"), accepted("b", 1.0, [], 3)])
