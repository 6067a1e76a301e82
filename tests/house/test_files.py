"""The shape of every file: small, documented, named for what it knows."""

import ast
import re
import subprocess

import pytest

from tests.house.sources import ROOT, packages, python_files, shipped_files, tree

MAX_LINES, MAX_TEST_LINES, MAX_FUNCTION, MAX_INIT = 400, 500, 60, 40
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base_utils"}
PRINTS = ("bench/", "cli/", "docs/", "examples/", "tools/")
MACHINE = re.compile(
    rb"(?<![\w./-])/(?:root|home|Users|work|opt|mnt)/\w"
    rb"|\b(?:pypi|pythonhosted|huggingface)\.(?:org|co)\b"
)
"""Folders of somebody's machine, and registries."""


@pytest.mark.parametrize("path", shipped_files())
def test_module_says_what_it_knows(path):
    text = ast.get_docstring(tree(path), clean=True)
    assert text, "no module docstring"
    prose = [line for line in text.splitlines() if line and not line.startswith("  ")]
    assert len(prose) <= 1 + 6, "a summary and up to 6 lines, beside indented drawings"


@pytest.mark.parametrize("path", python_files())
def test_file_is_short(path):
    text = (ROOT / path).read_text()
    assert text.count("\n") <= (MAX_TEST_LINES if path.startswith("tests/") else MAX_LINES)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


def test_names_say_something():
    stems = {path: path.rpartition("/")[2].removesuffix(".py") for path in python_files()}
    assert [path for path, stem in stems.items() if stem in VAGUE] == []
    classes = [
        f"{path}: {node.name}"
        for path in shipped_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Manager", "Helper", "Util"))
    ]
    assert classes == []


@pytest.mark.parametrize("path", [path for path in shipped_files() if path.endswith("__init__.py")])
def test_package_files_hold_no_logic(path):
    assert (ROOT / path).read_text().count("\n") <= MAX_INIT
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    for node in tree(path).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert is_docstring or isinstance(node, allowed), ast.unparse(node)


def test_only_commands_print():
    found = [
        f"{path}:{node.lineno}"
        for path in shipped_files()
        if not path.startswith(PRINTS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert found == []


def test_no_bytes_become_objects():
    """No torch.load, no numpy pickles: what another process sends is data, never code."""
    found = []
    for path in python_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                keywords = {word.arg for word in node.keywords}
                if name in {"torch.load", "eval", "exec"} or "allow_pickle" in keywords:
                    found.append(f"{path}:{node.lineno}: {name}")
    assert found == []


def test_ours_are_typed_and_packaged():
    assert (ROOT / "triptych" / "py.typed").exists()
    include = (ROOT / "pyproject.toml").read_text()
    assert [name for name in packages() if f'"{name}*"' not in include] == []


def test_no_link_is_shipped():
    """A link to a folder of somebody's machine would take the place of what is there."""
    done = subprocess.run(
        ["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("120000")] == []


def test_no_path_of_a_machine_and_no_registry_is_in_any_file():
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = done.stdout.split("\n") if done.returncode == 0 else python_files()
    found = []
    for name in names:
        path = ROOT / name
        if not path.is_file() or name == "tests/house/test_files.py":
            continue
        data = path.read_bytes()
        if b"\0" not in data[:1024] and (match := MACHINE.search(data)):
            found.append(f"{name}: {match[0].decode()}")
    assert found == []
