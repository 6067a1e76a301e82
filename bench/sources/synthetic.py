"""``synthetic:KIND``: requests without a file, from published statistics and round numbers.

Every kind is a set of defaults (``KINDS``), every default an option. The tables named ``servegen``
are figures of ServeGen's image clients over a day, each client weighted by its mean rate in all
four windows. Windows in which a client was silent are in the published figures as requests without
pictures: 7.0 % here, 0.6 % of what ``servegen:PATH`` draws. Knows no sessions: see ``sessions``.
"""

import random
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from bench.arrivals import Gaps, Rates, gaps, times
from bench.sources.pictures import Pictures
from bench.sources.shapes import Coupling, Draw, Pmf, Requests, Shape, amount, quantiles
from bench.workload import SIDE, Arrival, Text
from triptych.core.errors import ConfigError

SERVEGEN: dict[str, Draw] = {
    "images": Pmf(
        {0: 7.0, 1: 74.2, 2: 6.3, 3: 7.2, 4: 2.1, 5: 1.0, 6: 0.6, 7: 0.4, 8: 0.2, 9: 0.2}
        | {12: 0.3, 17: 0.15, 22: 0.15, 32: 0.15, 49: 0.1}
    ),
    "tokens": quantiles(
        "6:4 15:6 20:88 25:171 30:234 40:252 45:350 50:432 55:510 60:720 65:969 70:1173 "
        "75:1196 90:1222 95:1232 99:1271 100:1280"
    ),
    "text": quantiles(
        "7:31 15:41 20:63 35:79 50:94 55:124 60:191 65:372 70:474 75:1032 80:1226 85:1511 "
        "90:1913 95:2344 97:2605 99:3059 100:4242"
    ),
    "output": quantiles(
        "7:2 15:7 20:11 25:27 30:43 40:71 50:98 60:133 70:165 80:202 85:226 90:262 95:334 "
        "97:394 99:583 99.5:787 99.9:2000 100:2000"
    ),
}
"""Pictures of a request, visual tokens of a picture, text and output tokens."""

SHAREGPT: dict[str, Draw] = {
    "text": quantiles(
        "0:9 5:31 10:94 15:181 20:279 25:345 30:432 40:575 50:760 60:865 70:1043 75:1153 80:1316 "
        "85:1421 90:1512 95:1717 97:1763 99:1889 100:2003"
    ),
    "output": quantiles(
        "0:2 5:5 10:9 15:12 20:14 25:18 30:23 40:36 50:68 60:162 70:235 75:277 80:336 85:403 "
        "90:478 95:593 97:768 99:833 100:1085"
    ),
}
"""Quantiles of the 300 requests that DistServe's artifact replayed for OPT-13B (20a1633,
opt-13b-sharegpt-workload/distserve-300-3.exp): means 780 and 176; its paper says 755.5 and 200.3 of
the whole."""

TABLES = {"servegen": SERVEGEN, "sharegpt": SHAREGPT}

_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")


class Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options: what requests contain. Amounts as in ``shapes.amount``, or a name of ``TABLES``."""

    images: str = "servegen"
    """Pictures of a request."""
    tokens: str = "servegen"
    """Visual tokens of a picture."""
    size: str = ""
    """``1288x728``: of every picture in pixels, multiples of 28, instead of ``tokens``."""
    text: str = "servegen"
    output: str = "servegen"
    coupling: Coupling = "independent"
    repeat: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Probability that a picture is one of the last ``recent``."""
    recent: Annotated[int, msgspec.Meta(ge=1)] = 64
    prefix: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens that all prompts begin with: a system prompt."""
    slo: str = "interactive"

    def shape(self) -> Shape:
        """What one request is drawn from. Raises ConfigError."""
        return Shape(
            images=self.draw("images", self.images),
            tokens=self.draw("tokens", self.tokens),
            text=self.draw("text", self.text),
            output=self.draw("output", self.output),
            size=_pixels(self.size) if self.size else None,
            prefix=(Text(0, self.prefix),) if self.prefix else (),
        )

    def draw(self, field: str, text: str) -> Draw:
        """The distribution that ``text`` means for ``field``. Raises ConfigError."""
        table = TABLES.get(text, {})
        return table[field] if field in table else amount(text, field)

    def requests(self, source: random.Random) -> Requests:
        """Makes requests of ``source``."""
        return Requests(source, self.coupling, Pictures(source, self.repeat, self.recent))


class Settings(Contents, frozen=True, forbid_unknown_fields=True):
    """Options: what requests contain and when they come."""

    rate: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Per second, where the caller gives none."""
    arrivals: Literal["poisson", "gamma", "weibull", "uniform"] = "poisson"
    cv: float | None = None
    """Coefficient of variation of Gamma gaps."""
    shape_: float | None = msgspec.field(default=None, name="shape")
    """Of Gamma or Weibull gaps."""
    batch: Annotated[int, msgspec.Meta(ge=1)] = 1
    """So many requests at once each time, as many per second in all."""
    profile: str = ""
    """``0:1/300:4``: relative rate from 0 s and from 300 s on, scaled to the mean rate."""
    period_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """The profile begins anew after so long; 0: never."""
    phase_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Requests have no pictures for so long, then pictures for so long, and so on; 0: no phases."""
    shift_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """From then on the output is ``shifted_output``; 0: never."""
    shifted_output: str = "servegen"

    def gaps(self) -> Gaps:
        """Raises ConfigError."""
        return gaps(self.arrivals, self.cv, self.shape_)

    def rates(self) -> Rates:
        """The profile, not scaled. Raises ConfigError."""
        if not self.profile:
            return Rates(((0.0, 1.0),))
        pairs = [step.partition(":") for step in self.profile.split("/")]
        try:
            steps = tuple((float(start), float(rate)) for start, _, rate in pairs)
        except ValueError:
            raise ConfigError(f"profile: {self.profile!r} is not like 0:1/300:4") from None
        return Rates(steps, self.period_s) if self.period_s else Rates(steps)

    def times(
        self, rate: float | None, duration_s: float, source: random.Random
    ) -> Iterator[float]:
        """Arrivals; ``rate``, or else the option of that name, is the mean over ``duration_s``."""
        rates = self.rates()
        mean = rates.mean(duration_s)
        wanted = self.rate if rate is None else rate
        scaled = rates.scaled(wanted / mean if mean else 0.0)
        return times(self.gaps(), scaled, duration_s, source, self.batch)


class Synthetic:
    """Independent requests of one kind."""

    def __init__(self, settings: Settings, name: str = "synthetic") -> None:
        """Raises ConfigError."""
        self.name = name
        self.settings = settings
        self._shapes = [settings.shape()] * 4
        settings.gaps()
        settings.rates()
        later = settings.draw("output", settings.shifted_output)
        for index, shape in enumerate(self._shapes):
            images = shape.images if index & 1 else Pmf({0: 1.0})
            output = later if index & 2 else shape.output
            self._shapes[index] = msgspec.structs.replace(shape, images=images, output=output)

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload``. Without phases, the n-th request is the same at any rate."""
        settings = self.settings
        clock = random.Random(f"synthetic arrivals {seed}")
        requests = settings.requests(random.Random(f"synthetic requests {seed}"))
        for at_s in settings.times(rate, duration_s, clock):
            yield requests.make(at_s, self._at(at_s), slo=settings.slo)

    def _at(self, at_s: float) -> Shape:
        phase_s, shift_s = self.settings.phase_s, self.settings.shift_s
        has_images = not phase_s or at_s // phase_s % 2 == 1
        is_shifted = shift_s > 0 and at_s >= shift_s
        return self._shapes[has_images + 2 * is_shifted]


KINDS = {
    "servegen": Settings(),
    "image_heavy": Settings(images="4-8", tokens="1196", slo="multi-image"),
    "image_light": Settings(images="0.3"),
    "alternating": Settings(images="1-4", phase_s=60.0),
    "epdserve": Settings(
        images="2", size="4032x3024", text="22", output="10", slo="multi-image"
    ),
    "role_shift": Settings(
        images="2", size="4032x3024", text="22", output="50", rate=3.0, arrivals="uniform",
        shift_s=10 / 3, shifted_output="500", slo="multi-image",
    ),
    "sharegpt": Settings(images="0", text="sharegpt", output="sharegpt"),
    "fixed": Settings(images="1", tokens="576", text="64", output="128"),
    "video": Settings(images="32", tokens="196", text="64", output="64", slo="video"),
}  # fmt: skip
"""Defaults by kind; ``docs/workloads.md`` says where each number comes from."""


def _pixels(size: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(size)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not width or not height or width % SIDE or height % SIDE:
        raise ConfigError(f"size: {size!r} is not like 4032x3024, multiples of {SIDE}")
    return width, height
