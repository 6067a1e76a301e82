"""Writes ``triptych/v1`` from ``proto/triptych/v1/*.proto``. Deterministic; run by ``make proto``.

The generated modules import each other as ``triptych.v1``, which is what they are called in the
source tree too, so nothing has to be rewritten. ``--check`` only says whether they are in step.
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent
TARGET = ROOT.parent / "triptych" / "v1"
HEADER = '"""Generated from ``proto/`` by ``proto/generate.py``. Never edited by hand."""\n'
STUB_HEADER = "# mypy: disable-error-code=type-arg\n"


def generate(target: Path) -> dict[str, str]:
    """Compile every proto into ``target`` and return the package's files by name."""
    protos = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    written = (target / "triptych" / "v1").iterdir()
    sources = {path.name: path.read_text() for path in written if path.is_file()}
    for name in sources:
        if name.endswith(".pyi"):
            sources[name] = STUB_HEADER + sources[name]
    return {"__init__.py": HEADER, **sources}


def main() -> int:
    """Write or check the generated package; 1 when ``--check`` finds a difference."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = generate(Path(scratch))
    present = {path.name: path.read_text() for path in TARGET.glob("*.py*") if path.is_file()}
    if sources == present:
        return 0
    if "--check" in sys.argv[1:]:
        sys.stderr.write("triptych/v1 is not in step with proto/: run make proto\n")
        return 1
    TARGET.mkdir(parents=True, exist_ok=True)
    for stale in present.keys() - sources.keys():
        (TARGET / stale).unlink()
    for name, source in sorted(sources.items()):
        (TARGET / name).write_text(source)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
