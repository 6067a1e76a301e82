"""The table of docs/planning.md: layouts of eight GPUs by the closed form, for a model like
Qwen2.5-VL-7B on an H200.

The costs are a straight-line fit to a few sums of measured kernels, without launches and framework;
good for orders of magnitude. ``python docs/planning_table.py`` writes the table into the page.
"""

from collections.abc import Sequence
from pathlib import Path

from scheduler.planner import PLANNERS
from scheduler.planner.candidate import judged
from scheduler.planner.closed_form import Works
from scheduler.planner.demand import Shape
from scheduler.planner.problem import Footprint, Kind, Link, Pool, Problem
from triptych.core.topology import parse

PAGE = Path(__file__).with_name("planning.md")
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


class Roofline:
    """Seconds of Qwen2.5-VL-7B shapes in BF16 on one H200: fitted by hand to kernel sums at 144 to
    16,206 visual tokens and at batches of 1 to 128 with 1.3 to 11 K tokens of context, which it
    meets within 25 % above 1 K tokens."""

    def vision_s(self, pictures: Sequence[int]) -> float:
        """Linear layers, and the full-attention ones within each picture."""
        if not pictures:
            return 0.0
        return 1.2e-3 + sum(8.3e-6 * n + 6.1e-10 * n * n for n in pictures)

    def language_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, context: int
    ) -> float:
        """Reading the weights or computing with them, whichever is longer; then attention."""
        tokens = sum(length for _, length in chunks) + num_decodes
        if not tokens:
            return 0.0
        attended = sum(length * (prefix + length) for prefix, length in chunks)
        return (
            max(4.4e-3 + 6e-6 * num_decodes, 1.85e-5 * tokens)
            + 2.3e-10 * attended
            + 1.3e-8 * context
        )

    def decode_run_s(self, num_decodes: int, context: int, steps: int) -> float:
        """The sum over steps: only the context grows, in a straight line."""
        grown = num_decodes * steps * (steps - 1) // 2
        return steps * self.language_s((), num_decodes, context) + 1.3e-8 * grown


class Shared:
    """Costs of an instance of ``tp`` GPUs: each doubling keeps ``kept`` of the ideal gain."""

    def __init__(self, costs: Roofline, tp: int, kept: float = 0.85) -> None:
        self._costs = costs
        self._gain = tp * kept ** (tp.bit_length() - 1)

    def vision_s(self, pictures: Sequence[int]) -> float:
        """A share of the layers' seconds."""
        return self._costs.vision_s(pictures) / self._gain

    def language_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, context: int
    ) -> float:
        """A share of the layers' seconds."""
        return self._costs.language_s(chunks, num_decodes, context) / self._gain

    def decode_run_s(self, num_decodes: int, context: int, steps: int) -> float:
        """A share of the layers' seconds."""
        return self._costs.decode_run_s(num_decodes, context, steps) / self._gain


FOOTPRINT = Footprint(
    encoder_bytes=1.4e9,
    language_bytes=15.2e9,
    kv_token_bytes=57_344,
    embedding_token_bytes=7_168,
)


def kinds(*degrees: int) -> tuple[Kind, ...]:
    """H200s, ``tp`` of them an instance."""
    base = Roofline()
    return tuple(
        Kind(
            f"tp{tp}",
            base if tp == 1 else Shared(base, tp),
            tp=tp,
            memory_bytes=141e9 * tp,
            dollars_per_hour=4.0 * tp,
            idle_watts=120.0 * tp,
            busy_watts=700.0 * tp,
        )
        for tp in degrees
    )


WORKLOADS: dict[str, tuple[Shape, ...]] = {
    "text only": (Shape((), 600, 200),),
    "0.3 images": (Shape((), 600, 127),) * 7 + (Shape((600,), 1168, 127),) * 3,
    "1 image": (Shape((1196,), 1260, 127),) * 9 + (Shape((1196,), 3200, 250),),
    "1 image, strict": (Shape((1196,), 1260, 127, slo="strict"),) * 9
    + (Shape((1196,), 3200, 250, slo="strict"),),
    "4 images": tuple(Shape((1196,) * n, 1196 * n + 64, 127, slo="multi-image") for n in (3, 4, 5)),
    "4 images, strict": tuple(
        Shape((1196,) * n, 1196 * n + 64, 127, slo="strict") for n in (3, 4, 5)
    ),
    "8 images, short": (Shape((2691,) * 8, 21_592, 10, slo="multi-image"),),
    "long answers": (Shape((600,), 700, 1000),),
}
SHOWN = ("EPD8", "E1,PD7", "E2,P4,D2", "EP6,D2", "ED3,P5")
RIVALS = ("epdserve", "proportional", "distserve")


def problem(
    shapes: tuple[Shape, ...], num_gpus: int = 8, degrees: tuple[int, ...] = (1,)
) -> Problem:
    """The page's setting: NVLink between instances, layer-wise KV."""
    return Problem(
        shapes=shapes,
        kinds=kinds(*degrees),
        num_gpus=num_gpus,
        footprint=FOOTPRINT,
        embedding_link=Link(1e-3, 50e9),
        kv_link=Link(1e-3, 50e9, exposed=0.1),
        chunks=(512, 2048, 8192),
    )


def table() -> str:
    """Markdown: requests per second of fixed layouts and of each planner's choice."""
    head = ["workload", *(f"`{each}`" for each in SHOWN), *RIVALS, "`closed_form`", "limited by"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, shapes in WORKLOADS.items():
        asked = problem(shapes)
        fixed = [goodput(asked, topology) for topology in SHOWN]
        found = [PLANNERS[rival](asked, 1)[0] for rival in (*RIVALS, "closed_form")]
        cells = [name, *(f"{each:.1f}" for each in fixed)]
        cells += [f"{each.goodput:.1f} `{each.topology}`" for each in found]
        lines.append(f"| {' | '.join([*cells, found[-1].bottleneck])} |")
    return "\n".join(lines) + "\n"


def goodput(asked: Problem, topology: str) -> float:
    """Of one topology, under the better token budget."""
    works = Works(asked)
    layout = tuple(Pool(role, count, asked.kinds[0]) for role, count in parse(topology))
    return max(judged(works, layout, chunk).goodput for chunk in asked.chunks)


def page() -> str:
    """The page with the table in its place."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
