"""Checkpoints and executors that this folder's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.executor.interpreter  # noqa: F401  (repairs it)
from tests import checkpoints
from tests.executor.driver import executors
from triptych.executor.build import Executors


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of all tiny checkpoints and of the demo model, by kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    kinds = (*checkpoints.KINDS, checkpoints.WIDE)
    made = {kind: checkpoints.write(kind, root / kind) for kind in kinds}
    return {**made, "demo": checkpoints.DEMO}


@pytest.fixture(params=[*checkpoints.KINDS, "demo"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    """Each checkpoint in turn."""
    return folders[request.param]


@pytest.fixture
def whole(folder: Path) -> Iterator[Executors]:
    """Executors of all three stages for ``folder``."""
    made = executors(folder)
    yield made
    made.close()
