"""From a server's ledger to a workload: what was asked when, as lengths and numbers.

A prompt becomes one piece of text for each block of the ledger, its seed the block's key, so that
beginnings that were equal are equal again (to whole blocks), and pictures by their key. Tenants get
new names in order of appearance. Knows the ledger's lines as they are written; no server.
"""

from collections.abc import Iterable, Iterator

import msgspec

from bench.workload import SIDE, Arrival, Image, Part, Text
from triptych.core.ids import TenantId
from triptych.core.metrics import SLO_CLASSES

_ENDS = {"completed", "failed", "cancelled", "deadline_exceeded"}


class Shape(msgspec.Struct, frozen=True):
    """``asked`` of an accepted request; see ``router.ledger.Asked``."""

    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    slo: str
    block_tokens: int
    blocks: tuple[str, ...]
    pictures: tuple[tuple[str, int, int, int], ...] = ()


class Line(msgspec.Struct, frozen=True):
    """What is read of a line."""

    request: str
    state: str
    tenant: str = ""
    num_tokens: int = 0
    asked: Shape | None = None


def arrivals(lines: Iterable[bytes | str]) -> list[Arrival]:
    """Requests that have ended, in order of arrival, the first at 0. One that did not complete is
    replayed with the length that it was allowed. Raises ValueError for a line that is none of a
    ledger's, and where no line says what was asked."""
    accepted: dict[str, Line] = {}
    ended: list[tuple[Line, int]] = []
    decode = msgspec.json.Decoder(Line).decode
    for number, text in enumerate(lines, start=1):
        try:
            line = decode(text)
        except msgspec.DecodeError as error:
            raise ValueError(f"line {number}: {error}") from None
        if line.asked is not None:
            accepted[line.request] = line
        elif line.state in _ENDS and line.request in accepted:
            begun = accepted.pop(line.request)
            assert begun.asked is not None, "only such lines are kept"
            done = line.num_tokens if line.state == "completed" else begun.asked.max_tokens
            ended.append((begun, max(1, done)))
    if not ended:
        raise ValueError("no request in it has ended and says what was asked")
    return list(_replayable(ended))


def _replayable(ended: list[tuple[Line, int]]) -> Iterator[Arrival]:
    def when(pair: tuple[Line, int]) -> float:
        assert pair[0].asked is not None, "only such lines are kept"
        return pair[0].asked.arrival_s

    ended.sort(key=when)
    first_s = when(ended[0])
    tenants: dict[str, str] = {}
    for number, (line, num_output) in enumerate(ended):
        shape = line.asked
        assert shape is not None, "only such lines are kept"
        tenant = tenants.setdefault(line.tenant, f"tenant-{len(tenants) + 1}")
        yield Arrival(
            at_s=round(shape.arrival_s - first_s, 6),
            parts=tuple(_parts(shape, number)),
            num_output=num_output,
            answer=-1 - number,
            tenant=TenantId(tenant),
            slo=shape.slo if shape.slo in SLO_CLASSES else "batch",
        )


def _parts(shape: Shape, number: int) -> Iterator[Part]:
    """Text up to every picture and behind the last, cut where blocks end."""
    at = 0
    for key, offset, columns, rows in shape.pictures:
        yield from _texts(shape, number, at, offset)
        yield Image(int(key, 16), columns * SIDE, rows * SIDE)
        at = offset + columns * rows
    yield from _texts(shape, number, at, shape.prompt_tokens)


def _texts(shape: Shape, number: int, start: int, end: int) -> Iterator[Text]:
    while start < end:
        block = start // shape.block_tokens
        stop = min(end, (block + 1) * shape.block_tokens)
        is_whole = block < len(shape.blocks)
        # A block that is not full has no key: nobody else begins with it.
        seed = int(shape.blocks[block], 16) if is_whole else -1 - number
        yield Text(seed ^ (start % shape.block_tokens), stop - start)
        start = stop
