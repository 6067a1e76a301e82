"""Records reach stderr as text or as JSON lines, with what was raised."""

import json
import logging
from collections.abc import Iterator

import pytest

from triptych.core.config import LogConfig
from triptych.core.log import setup


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines_of_json(capsys: pytest.CaptureFixture[str]):
    setup(LogConfig(level="info", json=True), "prefill-0@1")
    try:
        raise ValueError("seven")
    except ValueError:
        logging.getLogger("here").exception("it was %d", 7)
    logging.getLogger("here").debug("too quiet")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["name"], record["message"]) == ("error", "here", "it was 7")
    assert record["process"] == "prefill-0@1"
    assert "ValueError: seven" in record["exception"]


def test_lines_of_text_name_the_process(capsys: pytest.CaptureFixture[str]):
    setup(LogConfig(), "prefill-0@1")
    logging.getLogger("here").warning("careful")
    assert "prefill-0@1 WARNING here: careful" in capsys.readouterr().err
