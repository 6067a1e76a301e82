"""A workload in numbers: for tables, and for closed forms that need means and second moments.

Knows requests, not where they came from, and no cost of anything.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from bench.workload import Arrival, Part, Workload


class Moments(msgspec.Struct, frozen=True):
    """Of one quantity over all requests (or pictures); zeros if there are none."""

    mean: float = 0.0
    second: float = 0.0
    """Mean of the square."""
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    most: float = 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return math.sqrt(max(self.second - self.mean**2, 0.0))


class Description(msgspec.Struct, frozen=True):
    """What ``num_requests`` requests are like, in tokens unless it says otherwise."""

    workload: str
    num_requests: int
    duration_s: float
    rate: float
    """Per second, sessions' later turns included."""
    gap_cv: float
    """Coefficient of variation of the gaps between arrivals that do not wait for an answer: 1 for
    a Poisson process."""
    with_images: float
    """Share of requests."""
    images: Moments
    """Pictures of a request."""
    image_tokens: Moments
    """Of one picture."""
    visual: Moments
    """Of all pictures of a request."""
    image_squares: float
    """Mean over requests of the sum of its pictures' squared tokens: full attention's work."""
    text: Moments
    prompt: Moments
    output: Moments
    repeated_images: float
    """Share of pictures that came before."""
    repeated_prompt: float
    """Share of prompt tokens in a beginning that came before, answers not counted: what a prefix
    cache without bounds would hit."""


def describe(workload: Workload, rate: float | None, duration_s: float, seed: int) -> Description:
    """What a workload offers in ``duration_s`` seconds."""
    arrivals = workload.arrivals(rate, duration_s, seed)
    return summarise(workload.name, arrivals, duration_s)


def summarise(name: str, arrivals: Iterable[Arrival], duration_s: float) -> Description:
    """The same of requests at hand."""
    requests = list(arrivals)
    pictures = [image for request in requests for image in request.images]
    sizes = [image.num_tokens for image in pictures]
    visual = [sum(image.num_tokens for image in request.images) for request in requests]
    count = len(requests)
    return Description(
        workload=name,
        num_requests=count,
        duration_s=duration_s,
        rate=count / duration_s if duration_s else 0.0,
        gap_cv=_gap_cv([request.at_s for request in requests if request.after_s is None]),
        with_images=sum(map(bool, visual)) / count if count else 0.0,
        images=moments([len(request.images) for request in requests]),
        image_tokens=moments(sizes),
        visual=moments(visual),
        image_squares=sum(size * size for size in sizes) / count if count else 0.0,
        text=moments([request.num_text for request in requests]),
        prompt=moments([request.num_prompt for request in requests]),
        output=moments([request.num_output for request in requests]),
        repeated_images=1 - len(set(pictures)) / len(pictures) if pictures else 0.0,
        repeated_prompt=_repeated_prompt(requests),
    )


def moments(values: Iterable[float]) -> Moments:
    """Of numbers; percentiles are values that occur (nearest rank)."""
    ordered = sorted(values)
    if not ordered:
        return Moments()
    count = len(ordered)
    ranked = (ordered[math.ceil(count * rank / 100) - 1] for rank in (50, 90, 95, 99, 100))
    squares = math.fsum(value * value for value in ordered)
    return Moments(math.fsum(ordered) / count, squares / count, *ranked)


def table(descriptions: Sequence[Description]) -> str:
    """Markdown, a line for each workload."""
    head = (
        "workload | requests/s | gap CV | with images (%) | images | tokens/image | text (P50, P99)"
        " | prompt (P99) | output (P50, P99) | images again (%) | prefix again (%)"
    )
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for each in descriptions:
        cells = [
            each.workload,
            f"{each.rate:.2f}",
            f"{each.gap_cv:.2f}",
            f"{100 * each.with_images:.1f}",
            f"{each.images.mean:.2f}",
            f"{each.image_tokens.mean:,.0f}",
            f"{each.text.mean:,.0f} ({each.text.p50:,.0f}, {each.text.p99:,.0f})",
            f"{each.prompt.mean:,.0f} ({each.prompt.p99:,.0f})",
            f"{each.output.mean:,.0f} ({each.output.p50:,.0f}, {each.output.p99:,.0f})",
            f"{100 * each.repeated_images:.1f}",
            f"{100 * each.repeated_prompt:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gap_cv(times: Sequence[float]) -> float:
    gaps = moments([end - start for start, end in pairwise(times)])
    return gaps.deviation / gaps.mean if gaps.mean else 0.0


def _repeated_prompt(requests: Sequence[Arrival]) -> float:
    """Every prompt is a path in a tree of parts; a part is repeated if its node is there."""
    nodes: dict[tuple[int, Part], int] = {}
    repeated = total = 0
    for request in requests:
        node, is_known = 0, True
        for part in request.parts:
            key = (node, part)
            is_known = is_known and key in nodes
            node = nodes.setdefault(key, len(nodes) + 1)
            repeated += part.num_tokens if is_known else 0
            total += part.num_tokens
    return repeated / total if total else 0.0
