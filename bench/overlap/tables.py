"""From samples to shares, tables and panels. Knows no server."""

from collections.abc import Sequence
from statistics import median

from bench import plots
from bench.overlap import analytic
from bench.overlap.measure import ALONE, Row


def hidden(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """Share of the transfer's own time that a case hides: 1 - exposed / exposed of ``ALONE``."""
    alone = {row.size: row.middle("exposed_s") for row in rows if row.case == ALONE}
    return {(row.case, row.size): 1 - row.middle("exposed_s") / alone[row.size] for row in rows}


def picture_table(rows: Sequence[Row]) -> str:
    """Markdown: medians, in brackets least and greatest."""
    lines = ["| pictures | case | TTFT (ms) | second token (ms) |", "|---|---|---|---|"]
    for row in rows:
        cells = [_spread(row, name) for name in ("ttft_s", "second_s")]
        lines.append(f"| {row.size} | {row.case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def token_table(rows: Sequence[Row], token_bytes: int) -> str:
    """Markdown: what decode waits for after prefill, and the share that is hidden."""
    shares = hidden(rows)
    lines = [
        "| tokens | KV (MB) | KV leaves | TTFT (ms) | exposed (ms) | hidden |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        tokens = round(row.middle("prompt_tokens"))
        lines.append(
            f"| {tokens:,} | {tokens * token_bytes / 1e6:.1f} | {row.case} |"
            f" {_spread(row, 'ttft_s')} | {_spread(row, 'exposed_s')} |"
            f" {shares[row.case, row.size]:.0%} |"
        )
    return "\n".join(lines)


def panels(pictures: Sequence[Row], tokens: Sequence[Row]) -> list[plots.Panel]:
    """Measured above, computed below."""
    measured = [
        plots.Panel("TTFT (ms), measured", "pictures", _lines(pictures, "ttft_s")),
        plots.Panel("second token (ms), measured", "pictures", _lines(pictures, "second_s")),
    ]
    shares: dict[str, list[tuple[float, float]]] = {}
    for (case, size), share in hidden(tokens).items():
        shares.setdefault(case, []).append((size, 100 * share))
    measured.append(plots.Panel("KV transfer hidden (%), measured", "tokens", shares, is_log=True))
    return [panel for panel in measured if panel.lines] + computed_panels()


def computed_panels() -> list[plots.Panel]:
    """Qwen2.5-VL-7B on H200s, from bytes and rates."""
    lengths, counts, link = (1024, 4096, 16384), (1, 4, 8), "InfiniBand NDR (50 GB/s)"
    times = {
        f"{encoders} encoder(s), {'' if word else 'no '}overlap": [
            (count, 1e3 * analytic.ttft_s(count, analytic.LINKS[link], is_overlapped=word,
                                          encoders=encoders))
            for count in counts
        ]
        for encoders in (1, 2)
        for word in (True, False)
    }  # fmt: skip
    shares = {
        f"{way}, {name}": [
            (tokens, 100 * analytic.handover(tokens, rate, way).hidden) for tokens in lengths
        ]
        for name, rate in analytic.LINKS.items()
        if "PCIe" not in name and "NVLink" not in name
        for way in ("chunk", "layer")
    }
    return [
        plots.Panel("TTFT (ms), H200, computed", "pictures of 1,024 tokens", times),
        plots.Panel("KV transfer hidden (%), H200, computed", "tokens", shares, is_log=True),
    ]


def _lines(rows: Sequence[Row], figure: str) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row.case, []).append((row.size, row.middle(figure) * 1e3))
    return lines


def _spread(row: Row, figure: str) -> str:
    values = [getattr(sample, figure) * 1e3 for sample in row.samples]
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"
