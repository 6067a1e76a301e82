"""One HTML file that needs nothing else: no network, no library, the data as JSON inside.

The page's own scripts are plain files in ``assets``; its policy forbids it to fetch anything. Knows
how the pieces are put together; what they show is ``document``'s.
"""

from importlib import resources
from pathlib import Path

import msgspec

from bench.report.document import document
from bench.study import Study

_SCRIPTS = (
    "dom.js", "plot.js", "bars.js", "gantt.js", "sections.js", "latency.js", "use.js", "tables.js",
    "page.js",
)  # fmt: skip
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(study: Study) -> str:
    """The whole file."""
    data = msgspec.json.encode(document(study)).decode()
    scripts = "\n".join(_asset(name) for name in _SCRIPTS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_escaped(study.title)}</title>
<style>
{_asset("style.css")}</style>
</head>
<body>
<noscript>This page draws its charts itself and needs JavaScript for it.</noscript>
<script type="application/json" id="data">{_in_script(data)}</script>
<script>
"use strict";
{scripts}</script>
</body>
</html>
"""


def write(path: Path, study: Study) -> None:
    """Write the page."""
    path.write_text(page(study), encoding="utf-8")


def _asset(name: str) -> str:
    return (resources.files("bench.report") / "assets" / name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _in_script(text: str) -> str:
    """JSON in which nothing can end the element that it stands in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
