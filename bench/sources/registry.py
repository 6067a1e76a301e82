"""Workloads by what a person types: ``servegen:PATH,coupling=independent``,
``synthetic:image_heavy,images=6,arrivals=gamma,cv=2``.

Knows the names of sources, kinds and options; what they mean is in each source and in
``docs/workloads.md``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from bench.sources import azure, azure_lmm, mooncake, recorded, servegen, sessions, synthetic
from bench.workload import Arrival, Workload
from triptych.core.errors import ConfigError
from triptych.core.metrics import SLO_CLASSES

Make = Callable[[Any, str], Workload]

FILES: dict[str, tuple[type[msgspec.Struct], Make]] = {
    "servegen": (servegen.Settings, servegen.ServeGen),
    "mooncake": (mooncake.Settings, mooncake.Mooncake),
    "azure": (azure.Settings, azure.Azure),
    "azure_lmm": (azure_lmm.Settings, azure_lmm.AzureLmm),
    "ledger": (recorded.Settings, recorded.Recorded),
}
"""Sources that read ``NAME:PATH``."""

KINDS: dict[str, tuple[msgspec.Struct, Make]] = {
    **{name: (settings, synthetic.Synthetic) for name, settings in synthetic.KINDS.items()},
    "multi_turn": (sessions.Turns(), sessions.MultiTurn),
    "closed_loop": (sessions.Loop(), sessions.ClosedLoop),
}
"""Of ``synthetic``: defaults, and what makes a workload of them."""

SOURCES = (*FILES, "synthetic")
COMMON = ("slo", "priority")
"""Options of every source: what each request is labelled with."""

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`.*")
_WRONG = re.compile(r"(?P<what>.*) - at `\$\.(?P<name>[^`]*)`")


class Labels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of every source."""

    slo: str | None = None
    """A name of ``core.metrics.SLO_CLASSES``; the source's own if None."""
    priority: int = 0


class Labelled:
    """A workload with other labels."""

    def __init__(self, inner: Workload, labels: Labels, name: str) -> None:
        """Raises ConfigError for an SLO class that is not known."""
        if labels.slo is not None and labels.slo not in SLO_CLASSES:
            raise ConfigError(f"slo: {labels.slo!r} is none of {', '.join(SLO_CLASSES)}")
        self.name = name
        self._inner = inner
        self._labels: dict[str, Any] = {"priority": labels.priority}
        if labels.slo is not None:
            self._labels["slo"] = labels.slo

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload``."""
        for arrival in self._inner.arrivals(rate, duration_s, seed):
            yield msgspec.structs.replace(arrival, **self._labels)


def workload(text: str) -> Workload:
    """The workload that ``text`` names: ``SOURCE:PATH or KIND,option=value,...``; a path has no
    comma. Its name leaves the path out. Raises ConfigError that names the field and what is known.
    """
    source, _, rest = text.partition(":")
    head, *words = rest.split(",")
    if source not in SOURCES:
        raise ConfigError(f"workload: {source!r} is none of {', '.join(SOURCES)}")
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name in options:
            raise ConfigError(f"workload: {word!r} is not option=value, or the option's second")
        options[name] = value
    labels = {name: options.pop(name) for name in COMMON if name in options}
    made = _synthetic(head, options) if source == "synthetic" else _file(source, head, options)
    if not labels:
        return made
    given = ",".join(f"{name}={value}" for name, value in labels.items())
    return Labelled(made, _convert(labels, Labels), f"{made.name},{given}")


def _file(source: str, path: str, options: Mapping[str, str]) -> Workload:
    settings, make = FILES[source]
    if not path or "path" in options:
        raise ConfigError(f"workload: {source} reads a file or folder: {source}:PATH")
    return make(_convert({"path": path, **options}, settings), _name(source, options))


def _synthetic(kind: str, options: Mapping[str, str]) -> Workload:
    if kind not in KINDS:
        raise ConfigError(f"workload: synthetic:{kind} is none of {', '.join(KINDS)}")
    defaults, make = KINDS[kind]
    values = {**msgspec.to_builtins(defaults), **options}
    return make(_convert(values, type(defaults)), _name(f"synthetic:{kind}", options))


def _name(source: str, options: Mapping[str, str]) -> str:
    return ",".join([source, *(f"{name}={value}" for name, value in options.items())])


def _convert(values: Mapping[str, object], kind: type[msgspec.Struct]) -> Any:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        fields = (field.encode_name for field in msgspec.structs.fields(kind))
        known = ", ".join(name for name in (*fields, *COMMON) if name != "path")
        if unknown := _UNKNOWN.fullmatch(f"{error}"):
            raise ConfigError(f"{unknown['name']}: no such option; known: {known}") from None
        if wrong := _WRONG.fullmatch(f"{error}"):
            raise ConfigError(f"{wrong['name']}: {wrong['what'].lower()}") from None
        raise ConfigError(f"workload: {error}") from None
