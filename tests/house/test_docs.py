"""The documents say what is so: generated pages in step, commands that exist, links that lead."""

import importlib.util
import re
import subprocess
import sys
import tomllib

import pytest

from cli.__main__ import COMMANDS, main
from tests.house.sources import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
SHELL = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES_WRITTEN = generator().pages()


@pytest.mark.parametrize("page", sorted(PAGES_WRITTEN), ids=lambda page: page.name)
def test_generated_page_is_in_step(page):
    assert page.read_text() == PAGES_WRITTEN[page], "run make docs"


def test_the_map_lists_exactly_the_files():
    listed = re.findall(r"^- \[`([^`]+)`\]", (ROOT / "docs" / "map.md").read_text(), re.MULTILINE)
    assert sorted(listed) == generator().python_files()


def test_every_key_of_the_config_has_a_meaning():
    rows = re.findall(
        r"^\| `(\w+\.\w+)` .*\| ([^|]*) \|$", PAGES_WRITTEN[ROOT / "docs/config.md"], re.M
    )
    assert [key for key, meaning in rows if not meaning.strip()] == []
    assert len(rows) > 50


def test_generated_protobuf_is_in_step():
    done = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_help_is_the_default_goal_and_names_every_target():
    done = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    shown = set(re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE))
    assert shown == TARGETS
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)[1]
    assert set(phony.replace("\\\n", " ").split()) == TARGETS


def commands():
    for page in PAGES:
        for block in SHELL.findall(page.read_text()):
            for line in block.splitlines():
                yield page.name, line.strip()


def test_commands_in_the_documents_exist():
    for page, line in commands():
        for target in re.findall(r"\bmake ((?:[a-z-]+ ?)*)", line):
            for name in target.split():
                assert name in TARGETS, f"{page}: {line}"
        for name in re.findall(r"\btriptych ([a-z]+)\b", line):
            assert name in COMMANDS, f"{page}: {line}"
        for name in re.findall(r"(?<![\w/.-])(?:examples|tests|docs)/[\w./-]+", line):
            assert (ROOT / name.rstrip("/.")).exists(), f"{page}: {line}"


def test_options_in_the_documents_exist(capsys):
    for page, line in commands():
        for name, rest in re.findall(r"\btriptych ([a-z]+) (.*)", line):
            with pytest.raises(SystemExit):
                main([name, "--help"])
            shown = capsys.readouterr().out
            for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
                assert option in shown, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    assert [name for name in targets if not (page.parent / name).exists()] == []


def requirement_name(text):
    return re.match(r"[\w.-]+", text)[0].lower().replace("_", "-")


def test_every_dependency_has_its_reason():
    page = (ROOT / "docs" / "dependencies.md").read_text()
    runtime, _, rest = page.partition("## For tests, checks and measurements")
    named = re.compile(r"^\| `([\w-]+)` \|", re.MULTILINE)
    assert named.findall(runtime) == sorted(map(requirement_name, PROJECT["dependencies"]))
    extras = {
        requirement_name(text)
        for name, texts in PROJECT["optional-dependencies"].items()
        if name != "dev"
        for text in texts
    }
    assert named.findall(rest) == sorted(extras)


def test_every_dependency_is_locked():
    lock = {
        requirement_name(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    asked = [*PROJECT["dependencies"]]
    for name, texts in PROJECT["optional-dependencies"].items():
        asked += texts if name != "dev" else []
    assert [text for text in asked if requirement_name(text) not in lock] == []


def test_the_changelog_is_kept():
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in headings[1:])


def test_decisions_are_numbered_and_whole():
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{n:04}" for n in range(1, len(pages) + 1)]
    for page in pages:
        headings = re.findall(r"^## (.*)", page.read_text(), re.MULTILINE)
        wanted = ["Context", "Decision", "Consequence", "How we would know it was wrong"]
        assert headings == wanted, page.name
