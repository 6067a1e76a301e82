"""What a client may say with a question, and the message made of it. Knows no call."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TypedDict

import msgspec

from triptych.core.errors import RequestError
from triptych.v1 import inference_pb2 as pb

PictureSource = bytes | str | PathLike[str]
"""Encoded bytes, or the path of a file to read."""


class Turn(msgspec.Struct, frozen=True):
    """What one side of a conversation said: texts (``str``) and pictures (``bytes``) in order."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    parts: tuple[str | bytes, ...]


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``generate``. What is left out takes the server's default; drawing is
    greedy unless ``temperature`` is given."""

    model: str
    system: str
    """Text of a system message in front of the question."""
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logprobs: int
    """Alternatives to report with each token; 0 reports the drawn token's own."""
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    num_choices: int
    slo: str
    """Name of an SLO class, e.g. ``interactive``."""
    ttft_ms: float
    tpot_ms: float
    degrade: bool
    """To be served without these bounds rather than refused."""
    priority: int
    """Higher goes first among the requests of the same tenant."""
    timeout_s: float
    """Deadline of the call; the server gives up the request with it."""


_SAMPLING = tuple(field.name for field in pb.SamplingOptions.DESCRIPTOR.fields)


def make_request(
    question: str | Sequence[Turn], pictures: Sequence[PictureSource], options: GenerateOptions
) -> pb.GenerateRequest:
    """The message of one question, pictures first, then the text; or of a whole conversation, whose
    last turn is what is asked."""
    values = dict(options)
    if isinstance(question, str):
        question = [Turn("user", (*map(_read, pictures), question))]
    elif pictures:
        raise RequestError("belong into the turns of a conversation", field="pictures")
    messages = [
        pb.ChatMessage(role=turn.role, parts=[_part(part) for part in turn.parts])
        for turn in question
    ]
    if "system" in options:
        system = pb.ContentPart(text=options["system"])
        messages.insert(0, pb.ChatMessage(role="system", parts=[system]))
    slo = pb.SloOptions(
        name=options.get("slo", ""),
        ttft_ms=options.get("ttft_ms"),
        tpot_ms=options.get("tpot_ms"),
        degrade=options.get("degrade", False),
    )
    has_slo = not options.keys().isdisjoint({"slo", "ttft_ms", "tpot_ms", "degrade"})
    sampling = {name: values[name] for name in _SAMPLING if name in values}
    try:
        return pb.GenerateRequest(
            model=options.get("model", ""),
            messages=messages,
            max_tokens=options.get("max_tokens"),
            sampling=pb.SamplingOptions(**sampling),  # type: ignore[arg-type]
            stop=options.get("stop", ()),
            stop_token_ids=options.get("stop_token_ids", ()),
            ignore_eos=options.get("ignore_eos", False),
            num_choices=options.get("num_choices"),
            slo=slo if has_slo else None,
            priority=options.get("priority", 0),
        )
    except (TypeError, ValueError) as error:
        raise RequestError(str(error)) from error


def _part(part: str | bytes) -> pb.ContentPart:
    return pb.ContentPart(text=part) if isinstance(part, str) else pb.ContentPart(picture=part)


def _read(picture: PictureSource) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise RequestError(f"{picture}: {error.strerror}", field="pictures") from error
