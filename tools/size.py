"""Count lines of Python by package, and what the working tree changed: ``make size``.

Code lines are those that are neither blank, comment nor docstring. Knows git only by its command.
"""

import ast
import re
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SKIPPED = re.compile(r"(.*/)?(\.|__pycache__|[^/]*\.egg-info)|(build|runs|reports|triptych/v1)/")
_SILENT = {
    tokenize.ENCODING,
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
}


def main() -> None:
    """Print the table."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    code: Counter[str] = Counter()
    for path in sources():
        room = room_of(path)
        text = (ROOT / path).read_text()
        files[room] += 1
        lines[room] += text.count("\n")
        code[room] += code_lines(ROOT / path, text)
    changed = changes()
    print(f"{'room':24} {'files':>5} {'lines':>6} {'code':>6} {'changed':>12}")
    for room in sorted(files):
        plus, minus = changed.get(room, (0, 0))
        note = f"+{plus} -{minus}" if plus or minus else ""
        print(f"{room:24} {files[room]:5} {lines[room]:6} {code[room]:6} {note:>12}")
    total = f"{files.total():5} {lines.total():6} {code.total():6}"
    print(f"{'all':24} {total}")


def sources() -> list[str]:
    """Python files of the project, without generated ones."""
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
    return sorted(path for path in found if not _SKIPPED.match(path))


def room_of(path: str) -> str:
    """``triptych/core`` for the shared engine's rooms, the top folder for the rest."""
    parts = path.split("/")
    depth = 2 if parts[0] in {"triptych", "examples"} and len(parts) > 2 else 1
    return "/".join(parts[:depth]) if len(parts) > 1 else "."


def code_lines(path: Path, text: str) -> int:
    """Lines that hold a token of code; a docstring is none."""
    silent: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            silent.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    held: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in _SILENT and token.string:
                held.update(range(token.start[0], token.end[0] + 1))
    return len(held - silent)


def changes() -> dict[str, tuple[int, int]]:
    """Lines added and removed by room since the last commit."""
    found: dict[str, tuple[int, int]] = {}
    for line in _git("diff", "--numstat", "HEAD", "--", "*.py").splitlines():
        plus, minus, path = line.split("\t")
        before = found.get(room_of(path), (0, 0))
        found[room_of(path)] = (before[0] + int(plus), before[1] + int(minus))
    return found


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
