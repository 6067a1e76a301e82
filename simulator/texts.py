"""Tokens and picture keys from the numbers of a workload, and prompts made of them.

A text of a seed is two tokens of its own and a stretch of one fixed table behind them, so that
equal seeds give equal beginnings and others never do. Knows no tokenizer: nobody reads these texts.
"""

import random
from array import array
from collections.abc import Mapping, Sequence

from bench.workload import Arrival, Image, Text
from router.answer import Delta, TokenInfo
from triptych.core.event import Token
from triptych.core.hashing import digest
from triptych.core.ids import ContentHash, RequestId
from triptych.core.request import (
    ImagePart,
    Item,
    Message,
    Picture,
    Prompt,
    Request,
    Sampling,
    Slo,
    StopRule,
    TextPart,
)
from triptych.inputs.model_card import ImageGeometry, ModelCard
from triptych.inputs.tokenizer import Tokenizer

VOCAB_SIZE = 1 << 31
IMAGE_PAD = 1
_TABLE_SIZE = 1 << 16
_TABLE = tuple(array("H", random.Random("triptych text").randbytes(2 * _TABLE_SIZE))) * 2
_LONGEST = _TABLE_SIZE


def token(seed: int, index: int) -> int:
    """The ``index``-th token of the text of ``seed``; the first two no other seed has, if seeds
    are below 2^62."""
    if index < 2:
        return seed >> 31 * index & VOCAB_SIZE - 1
    return _TABLE[(seed * 7919 + index) % _TABLE_SIZE]


def tokens(seed: int, count: int, start: int = 0) -> tuple[int, ...]:
    """Tokens ``[start, start + count)`` of the text of ``seed``."""
    if count <= 0:
        return ()
    if start < 2:
        return (token(seed, start), *tokens(seed, count - 1, start + 1))
    found: tuple[int, ...] = ()
    begin = (seed * 7919 + start) % _TABLE_SIZE
    while count > _LONGEST:
        found += _TABLE[begin : begin + _LONGEST]
        count -= _LONGEST
    return found + _TABLE[begin : begin + count]


def card(name: str, max_positions: int = 131_072) -> ModelCard:
    """A card of a model that only takes time: any token is text, nothing ends a sequence."""
    geometry = ImageGeometry(14, 2, 2, 56 * 56, 1 << 62, (0.0,) * 3, (1.0,) * 3)
    return ModelCard(
        name=name,
        family="simulated",
        fingerprint=digest("simulated", name.encode()).hex()[:32],
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(),
        max_positions=max_positions,
        image=geometry,
        image_token_id=IMAGE_PAD,
        vision_start_token_id=IMAGE_PAD + 1,
        vision_end_token_id=IMAGE_PAD + 2,
    )


def key_of(image: Image, salt: bytes) -> ContentHash:
    """The cache key of a picture, as different for each tenant as at the server."""
    size = image.content.to_bytes(8, "little", signed=True) + image.num_tokens.to_bytes(8, "little")
    return digest("simulated picture", salt, size)


def prompt_of(arrival: Arrival, salt: bytes) -> Prompt:
    """The prompt of a request, without a chat template."""
    ids: list[int] = []
    items: list[Item] = []
    for part in arrival.parts:
        if isinstance(part, Text):
            ids += tokens(part.seed, part.num_tokens)
        else:
            grid = (1, part.height // 14, part.width // 14)
            items.append(Item(key_of(part, salt), len(ids), part.num_tokens, grid))
            ids += [IMAGE_PAD] * part.num_tokens
    return Prompt(tuple(ids), tuple(items))


class SilentTokenizer:
    """Gives no text for any token. Implements ``inputs.tokenizer.Tokenizer``."""

    control: Mapping[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """The bytes of the text."""
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:  # noqa: ARG002
        """Nothing."""
        return b""

    def is_hidden(self, token: int) -> bool:  # noqa: ARG002
        """All are."""
        return True


_NOTHING = (TokenInfo(0, "", b""),)


class Unspoken:
    """Says nothing of a choice but that there is more, and why it ended. Implements
    ``router.text.Spelling``."""

    is_stopped = False

    def __init__(self, choice: int, stop: tuple[str, ...]) -> None:  # noqa: ARG002
        self._choice = choice

    def push(self, tokens: Sequence[Token]) -> Delta:
        """See ``Spelling``."""
        return Delta(self._choice, "", _NOTHING * len(tokens))

    def finish(self, reason: str) -> Delta:
        """See ``Spelling``."""
        return Delta(self._choice, "", (), reason)


class SimulatedPrompts:
    """Arrivals as requests, and their prompts when the router asks for them. Implements
    ``inputs.prompts.Prompts``."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer = SilentTokenizer()
        self._arrivals: dict[str, Arrival] = {}

    def request(self, number: int, arrival: Arrival, slo: Slo, deadline_s: float) -> Request:
        """What a door would make of the arrival."""
        name = str(number)
        self._arrivals[name] = arrival
        images = arrival.images
        places = tuple(ImagePart(index) for index in range(len(images)))
        return Request(
            id=RequestId(f"req-{name}"),
            tenant=arrival.tenant,
            messages=(Message("user", (TextPart(name), *places)),),
            pictures=tuple(Picture(b"", "PNG", one.width, one.height) for one in images),
            sampling=Sampling(seed=arrival.answer),
            stop=StopRule(arrival.num_output),
            slo=slo,
            deadline_s=deadline_s,
        )

    def expand(
        self,
        messages: Sequence[Message],
        pictures: Sequence[Picture],  # noqa: ARG002
        salt: bytes,
    ) -> Prompt:
        """See ``Prompts``."""
        name = messages[0].parts[0]
        assert isinstance(name, TextPart), "made by ``request``"
        return prompt_of(self._arrivals[name.text], salt)

    def forget(self, request: Request) -> None:
        """The request is over."""
        del self._arrivals[request.id.removeprefix("req-")]
