"""The ledger: what it takes, what it refuses, and that its checker finds every kind of wrong."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.ledger import Asked, Ledger, check
from triptych.core.clock import ManualClock
from triptych.core.errors import InvariantBroken
from triptych.core.ids import RequestId, TenantId
from triptych.core.lifecycle import RequestState

A = RequestId("a")
T = TenantId("public")
WORKING = [RequestState.ENCODING, RequestState.PREFILLING, RequestState.DECODING]
TERMINAL = [state for state in RequestState if state.is_terminal]


def test_one_accept_one_terminal(tmp_path: Path) -> None:
    ledger = Ledger(ManualClock(), tmp_path / "ledger")
    ledger.accept(A, T)
    ledger.move(A, RequestState.ENCODING, 0)
    assert ledger.num_open == 1
    ledger.close(A, RequestState.COMPLETED, num_tokens=3)
    ledger.shut()
    lines = (tmp_path / "ledger").read_text().splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["accepted", "encoding", "completed"]
    assert check(lines) == []
    assert ledger.outcomes == {"completed": 1}
    assert ledger.num_open == 0


def test_what_was_asked_stands_with_the_acceptance(tmp_path: Path) -> None:
    ledger = Ledger(ManualClock(), tmp_path / "ledger")
    ledger.accept(A, T, Asked(0.5, 70, 12, "strict", 64, ("ab",), (("cd", 3, 4, 2),)))
    ledger.close(A, RequestState.COMPLETED, num_tokens=12, cached_tokens=64)
    ledger.shut()
    lines = (tmp_path / "ledger").read_text().splitlines()
    assert check(lines) == []
    first, last = map(json.loads, lines)
    assert first["asked"]["pictures"] == [["cd", 3, 4, 2]]
    assert (last["asked"], last["cached_tokens"]) == (None, 64)


@pytest.mark.parametrize("terminal", TERMINAL)
@pytest.mark.parametrize("after", [*WORKING, *TERMINAL])
def test_nothing_follows_a_terminal_state(terminal: RequestState, after: RequestState) -> None:
    ledger = Ledger(ManualClock())
    ledger.accept(A, T)
    ledger.close(A, terminal)
    with pytest.raises(InvariantBroken):
        ledger.close(A, after) if after.is_terminal else ledger.move(A, after, 0)


def test_refuses_what_cannot_be() -> None:
    ledger = Ledger(ManualClock())
    with pytest.raises(InvariantBroken):
        ledger.move(A, RequestState.ENCODING, 0)
    ledger.accept(A, T)
    with pytest.raises(InvariantBroken):
        ledger.accept(A, T)
    with pytest.raises(InvariantBroken):
        ledger.close(A, RequestState.ENCODING)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(WORKING), max_size=6), st.sampled_from(TERMINAL), st.data())
def test_checker_finds_what_was_tampered_with(
    moves: list[RequestState], end: RequestState, data: st.DataObject
) -> None:
    lines = [json.dumps({"at_s": 0.0, "request": "a", "state": "accepted"})]
    lines += [json.dumps({"at_s": 0.0, "request": "a", "state": move.value}) for move in moves]
    lines += [json.dumps({"at_s": 0.0, "request": "a", "state": end.value})]
    assert check(lines) == []
    assert check(lines[1:]), "an event before ACCEPTED"
    assert check(lines[:-1]), "no terminal state"
    assert check([*lines, data.draw(st.sampled_from(lines))]), "an event behind the terminal one"
