"""Writes the pages of docs/ that follow from the code: map, config, tables of metrics and costs.

Reads sources as text and never imports them. ``make docs`` runs it; a test compares.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_NOTE = "<!-- Written by docs/generate.py: `make docs`. Do not edit. -->\n"
_BEGIN, _END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"
_FLOORS = (
    ("cli", "The command `triptych`."),
    ("router", "Doors, admission, the path of a request."),
    ("cluster", "Which instances live where, and that they live."),
    ("encoder_service", "Encode instances."),
    ("prefill_service", "Prefill instances, and those that also decode."),
    ("decode_service", "Decode instances."),
    ("scheduler", "Policies: values in, values out."),
    ("kvtransfer", "Blocks from one instance to another."),
    ("bench", "Measurements over HTTP."),
    ("triptych/client", "What other programs import."),
    ("triptych/engine", "Decides what a step computes. No tensors."),
    ("triptych/executor", "Computes it. The only room of tensors."),
    ("triptych/cache", "Who holds which block. Integers only."),
    ("triptych/inputs", "Tokenizer, chat template, pictures."),
    ("triptych/codec", "Numbers of blocks as other bytes: dtypes, INT8, FP8."),
    ("triptych/wire", "gRPC."),
    ("triptych/core", "Words that floors share."),
    ("triptych", "The shared engine."),
    ("proto", "The contract; `triptych/v1` is generated from it."),
    ("examples", "The demo model and pictures."),
    ("docs", "These pages."),
    ("tools", "What the Makefile runs."),
)
_SKIPPED = re.compile(
    r"(.*/)?(\.|__pycache__|[^/]*\.egg-info)|(build|runs|reports|tests|triptych/v1)/"
)
_TYPES = {
    "Count": "integer >= 1",
    "Amount": "integer >= 0",
    "MessageBytes": "integer 1 to 2^40",
    "Seconds": "number > 0",
    "str": "text",
    "bool": "true or false",
    "Gap": "number from 0 to 0.05",
    "Share": "number > 0, at most 1",
    "dict[str, str]": "table of text",
    "dict[str, Weight]": "table of numbers > 0",
    "dict[str, tuple[str, ...]]": "table of arrays of text",
    "Annotated[float, Meta(ge=1)]": "number >= 1",
    "Annotated[float, Meta(ge=0, le=1)]": "number 0 to 1",
    "Annotated[int, Meta(ge=0, le=19)]": "integer 0 to 19",
    "Annotated[int, Meta(ge=2, le=256)]": "integer 2 to 256",
    "Annotated[int, Meta(ge=16, le=128)]": "integer 16 to 128",
}


def pages() -> dict[Path, str]:
    """Every generated page with its whole text."""
    metrics, costs = DOCS / "metrics.md", DOCS / "costs.md"
    return {
        DOCS / "map.md": map_page(),
        DOCS / "config.md": config_page(),
        metrics: between(metrics.read_text(), metrics_table()),
        costs: between(costs.read_text(), costs_table()),
    }


def python_files() -> list[str]:
    """Python files of the project, without tests and without generated code."""
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
    return sorted(path for path in found if not _SKIPPED.match(path))


def map_page() -> str:
    """Every file with the first sentence of its docstring, from the roof down."""
    lines = [
        _NOTE,
        "# Map",
        "",
        "Every Python file and what it knows. A package imports only from those further down; see",
        "[ADR 1](adr/0001-floors.md). Tests mirror this tree under `tests/`.",
    ]
    rest = python_files()
    for folder, purpose in _FLOORS:
        mine = [path for path in rest if path.startswith(folder + "/")]
        rest = [path for path in rest if path not in mine]
        if mine:
            lines += ["", f"## {folder}/", "", purpose, ""]
            lines += [f"- [`{path}`](../{path}): {first_sentence(path)}" for path in mine]
    if rest:
        lines += ["", "## Elsewhere", ""]
        lines += [f"- [`{path}`](../{path}): {first_sentence(path)}" for path in rest]
    return "\n".join(lines) + "\n"


def first_sentence(path: str) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    words = " ".join(text.split("\n\n")[0].split())
    sentence, separator, _ = words.partition(". ")
    return (sentence + separator.strip()).replace("``", "`")


def config_page() -> str:
    """Every key with its type, default and meaning, from the structs of core/config*.py."""
    sources = sorted((ROOT / "triptych/core").glob("config*.py"))
    tree = ast.parse("\n".join(path.read_text() for path in sources))
    structs = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    choices = _choices(tree)
    lines = [
        _NOTE,
        "# Configuration",
        "",
        "One tree. A TOML file (`triptych serve --config FILE`) has a table for each section;",
        "`--set section.key=value` and the environment's `TRIPTYCH_SECTION__KEY` override single",
        "keys: defaults < file < environment < `--set` < named options. An unknown key or a wrong",
        "value fails with its path, before anything is started.",
    ]
    for section in _fields(structs["Config"]):
        struct = structs[ast.unparse(section.annotation)]
        lines += ["", f"## [{ast.unparse(section.target)}]", "", _docstring(struct), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for field, meaning in _described(struct):
            key = f"{ast.unparse(section.target)}.{ast.unparse(field.target)}"
            kind = ", ".join(f"`{choice}`" for choice in choices.get(key, ()))
            kind = kind or _TYPES[ast.unparse(field.annotation)]
            default = _literal(field.value)
            lines.append(f"| `{key}` | {kind} | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def metrics_table() -> str:
    """Every metric that some file registers: name as exported, kind, labels, meaning."""
    rows = []
    for path in python_files():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Call) and (row := _metric(node)):
                rows.append(row)
    head = "| name | kind | labels | meaning |\n|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in sorted(rows))


def costs_table() -> str:
    """Fit errors of the shipped cost files: mean and 99th percentile, the worst degree's."""
    parts = ("products", "chunk_attention", "decode_attention", "vision_attention")
    rows = []
    for path in sorted((ROOT / "simulator/costs/data").glob("*.json")):
        cards = json.loads(path.read_text()).get("cards", {})
        fitted = [card["costs"]["errors"] for card in cards.values() if "errors" in card["costs"]]
        if fitted and fitted[0]:
            cells = [path.stem.replace("_", ":", 1), ", ".join(cards)]
            cells += [_worst([each[part] for each in fitted if part in each]) for part in parts]
            rows.append(f"| `{cells[0]}` | {' | '.join(cells[1:])} |\n")
    head = f"| name | `tp` | {' | '.join(part.replace('_', ' ') for part in parts)} |\n"
    return head + "|---" * (len(parts) + 2) + "|\n" + "".join(rows)


def _worst(errors: list[dict[str, float]]) -> str:
    if not errors:
        return "-"
    return " / ".join(f"{100 * max(each[key] for each in errors):.0f} %" for key in ("mean", "p99"))


def between(page: str, text: str) -> str:
    """``page`` with ``text`` between its two marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + text + _END + after


def _metric(node: ast.Call) -> tuple[str, str, str, str] | None:
    kind = node.func.id if isinstance(node.func, ast.Name) else ""
    texts = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
    if kind not in {"Counter", "Gauge", "Histogram"} or len(texts) < 2:
        return None
    labels = [ast.literal_eval(arg) for arg in node.args[2:3] if isinstance(arg, ast.List)]
    name = f"{texts[0]}_total" if kind == "Counter" else texts[0]
    named = ", ".join(f"`{label}`" for label in (labels[0] if labels else ()))
    return f"`{name}`", kind.lower(), named, texts[1]


def _choices(tree: ast.Module) -> dict[str, tuple[str, ...]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_CHOICES":
            found: dict[str, tuple[str, ...]] = ast.literal_eval(node.value)
            return found
    raise LookupError("_CHOICES is not in core/config.py")


def _fields(struct: ast.ClassDef) -> list[ast.AnnAssign]:
    return [node for node in struct.body if isinstance(node, ast.AnnAssign)]


def _described(struct: ast.ClassDef) -> Iterable[tuple[ast.AnnAssign, str]]:
    """Fields, each with the string that stands behind it."""
    for index, node in enumerate(struct.body):
        if isinstance(node, ast.AnnAssign):
            behind = struct.body[index + 1] if index + 1 < len(struct.body) else None
            text = ""
            if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                text = str(behind.value.value)
            yield node, " ".join(text.replace("``", "`").split())


def _docstring(struct: ast.ClassDef) -> str:
    return (ast.get_docstring(struct) or "").replace("``", "`")


def _literal(node: ast.expr | None) -> str:
    value = ast.literal_eval(node) if node is not None else ""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def main() -> int:
    """Write the pages; with ``--check`` only say which are out of step."""
    stale = [
        path for path, text in pages().items() if not path.exists() or path.read_text() != text
    ]
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not in step: run make docs\n")
        return int(bool(stale))
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
