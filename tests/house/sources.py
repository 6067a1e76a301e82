"""The project's own sources, for tests that read instead of run."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SKIPPED = re.compile(r"(.*/)?(\.|__pycache__|[^/]*\.egg-info)|(build|runs|reports|triptych/v1)/")


@cache
def python_files() -> tuple[str, ...]:
    """Every Python file but generated ones, relative to the root."""
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
    return tuple(sorted(path for path in found if not _SKIPPED.match(path)))


def shipped_files() -> tuple[str, ...]:
    """Without the tests."""
    return tuple(path for path in python_files() if not path.startswith("tests/"))


@cache
def packages() -> tuple[str, ...]:
    """Top-level packages."""
    return tuple(sorted({path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}))


@cache
def tree(path: str) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse((ROOT / path).read_text(), filename=path)


@cache
def imports(path: str) -> frozenset[str]:
    """Full dotted names of everything that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def is_imported(name: str, path: str) -> bool:
    """Whether the file imports the module ``name`` or something inside it."""
    return any(one == name or one.startswith(name + ".") for one in imports(path))
