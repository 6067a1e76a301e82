"""The costs and workloads of docs/planning.md, for tests."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).resolve().parents[2] / "docs" / "planning_table.py"


def load():
    if "planning_table" not in sys.modules:
        spec = importlib.util.spec_from_file_location("planning_table", _PATH)
        sys.modules["planning_table"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["planning_table"]


TABLE = load()
