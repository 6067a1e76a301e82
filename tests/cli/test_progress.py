"""The bar: what is left, and silence where nobody looks."""

import sys

import pytest

from cli.progress import Bar


@pytest.mark.parametrize(
    ("share", "elapsed_s", "said"),
    [(0.5, 60, "1:00 left"), (0.25, 30, "1:30 left"), (0.0, 9, ""), (0.02, 9e9, "hours left")],
)
def test_the_time_that_is_left(share, elapsed_s, said):
    assert Bar.left(share, elapsed_s).strip() == said


def test_a_file_gets_a_line_now_and_then(capsys):
    bar = Bar()
    for step in range(1000):
        bar("working", step / 1000)
    bar("done with one\n", 1.0)
    bar.done()
    assert capsys.readouterr().err == "done with one\n"


def test_a_terminal_sees_it_move(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Bar, "TERMINAL_S", 0.0)
    bar = Bar()
    bar("working", 0.5)
    said = capsys.readouterr().err
    assert "█" * 12 + "░" * 12 in said and " 50%" in said and "working" in said
