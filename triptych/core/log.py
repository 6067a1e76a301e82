"""Logging of every process: one handler to stderr, text or JSON lines. No secrets, no contents."""

import json
import logging
import sys

from triptych.core.config import LogConfig


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "process": self._process,
            "level": record.levelname.lower(),
            "name": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def setup(config: LogConfig, process: str) -> None:
    """Send this process's records to stderr, each with the process's name."""
    handler = logging.StreamHandler(sys.stderr)
    text = f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(_JsonFormatter(process) if config.json else logging.Formatter(text))
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
