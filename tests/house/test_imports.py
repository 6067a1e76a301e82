"""Who may import what: floors by import-linter, rooms by reading the sources."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.house.sources import ROOT, imports, is_imported, packages, python_files, shipped_files

ROOMS = {
    "cryptography": r"kvtransfer/seal\.py|triptych/offload/disk\.py",
    "ray": r"cluster/ray_actors\.py",
    "grpc": (
        r"triptych/(wire|client)/.*|triptych/client\.py|\w+_service/server\.py"
        r"|router/doors/grpc_door\.py|cluster/node\.py|examples/.*"
    ),
    "torch": (
        r"triptych/executor/.*|kvtransfer/transports/process_group\.py"
        r"|bench/peer_transformers\.py|cli/gpu/.*|examples/.*"
    ),
    "transformers": r"bench/peer_transformers\.py|cli/gpu/peer\.py|examples/.*",
    "numpy": r"triptych/(codec|executor|inputs|offload)/.*|kvtransfer/repartition\.py|examples/.*",
    "matplotlib": r"bench/plots\.py|examples/.*|docs/.*",
    "optuna": r"simulator/planning\.py",
    "pyarrow": r"simulator/costs/tables\.py",
    "starlette": r"router/.*",
    "uvicorn": r"router/.*",
    "uvloop": r"cluster/loop\.py|bench/peers/proxy\.py",
    "tokenizers": r"triptych/(executor|inputs)/.*|examples/.*",
}
"""Module, and the files that may import it. Tests may import everything."""

UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def test_floors():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", sorted(ROOMS))
def test_a_library_stays_in_its_room(module):
    allowed = re.compile(ROOMS[module])
    outside = [
        path
        for path in shipped_files()
        if is_imported(module, path) and not allowed.fullmatch(path)
    ]
    assert not outside, f"{module} is imported outside {ROOMS[module]}"


def test_tests_of_ray_are_the_only_ones_that_see_it():
    users = {path for path in python_files() if is_imported("ray", path)}
    assert all(path.startswith("tests/") for path in users - {"cluster/ray_actors.py"})


@pytest.mark.parametrize("module", sorted(UNSAFE))
def test_nothing_unpickles(module):
    assert [path for path in python_files() if is_imported(module, path)] == []


def test_modules_name_their_imports_from_the_root():
    """`from . import x` hides on which floor a line stands."""
    dotted = re.compile(r"^\s*from \.", re.MULTILINE)
    assert [path for path in shipped_files() if dotted.search((ROOT / path).read_text())] == []


def test_packages_are_not_claimed_by_anything_installed():
    """A package of the same name in site-packages would break one of the two."""
    claims = metadata.packages_distributions()
    ours = {"triptych"}
    clashes = {name: claims[name] for name in packages() if set(claims.get(name, ours)) - ours}
    assert clashes == {}


def test_proto_is_no_package():
    """proto-plus, which other packages bring, owns the name `proto`."""
    assert not (ROOT / "proto" / "__init__.py").exists()
    assert [path for path in python_files() if "proto" in imports(path)] == []
