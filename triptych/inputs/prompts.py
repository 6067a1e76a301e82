"""From a conversation to a prompt: token ids, exact places and cache keys of pictures.

Works from picture headers alone; nothing is decoded here. A client's text can contain no control
token: whatever it writes stays text. Blocking work of milliseconds; call it off the event loop.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from triptych.core.errors import RequestError
from triptych.core.hashing import item_key
from triptych.core.request import ImagePart, Item, Message, Picture, Prompt, TextPart
from triptych.inputs.images import grid_of, num_tokens
from triptych.inputs.model_card import ModelCard
from triptych.inputs.template import load_template
from triptych.inputs.tokenizer import Tokenizer, load_tokenizer

ROLES = ("system", "user", "assistant", "tool")
"""Roles of messages that templates know."""

PIXEL_RULES = "exif,first-frame,white,bicubic"
"""How ``decode`` makes pixels of a picture; part of its cache key. A change there changes this."""


class Prompts(Protocol):
    """``PromptBuilder``, as far as a router cares."""

    tokenizer: Tokenizer

    def expand(
        self, messages: Sequence[Message], pictures: Sequence[Picture], salt: bytes
    ) -> Prompt:
        """See ``PromptBuilder``."""
        ...


class PromptBuilder:
    """Builds prompts for one model. Safe to use from several threads."""

    def __init__(self, card: ModelCard, path: str) -> None:
        self.tokenizer = load_tokenizer(path)
        self._card = card
        self._template = load_template(path)
        names = sorted(self.tokenizer.control, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        self._openers = {name[0] for name in names}

    def expand(
        self, messages: Sequence[Message], pictures: Sequence[Picture], salt: bytes
    ) -> Prompt:
        """The prompt of a conversation; ``salt`` keeps the cache keys of tenants apart.

        Raises RequestError when the template cannot place exactly the given pictures.
        """
        order = _picture_order(messages, len(pictures))
        token_ids = self._render(messages)
        pad = self._card.image_token_id
        if token_ids.count(pad) != len(order):
            raise RequestError(
                f"the chat template placed {token_ids.count(pad)} of {len(order)} pictures",
                field="messages",
            )
        expanded: list[int] = []
        items: list[Item] = []
        remaining = iter(order)
        for token in token_ids:
            if token == pad:
                item = self._item(pictures[next(remaining)], len(expanded), salt)
                items.append(item)
                expanded.extend([pad] * item.num_tokens)
            else:
                expanded.append(token)
        return Prompt(tuple(expanded), tuple(items))

    def _render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids with one placeholder per picture.

        Every character of a client's text that may begin a control token gets a mark behind it,
        so that only the template's own control tokens are found; then the marks go. Texts between
        two control tokens are encoded in one piece, whoever wrote them, as the model was trained.
        """
        mark = _unused_character(messages)
        rendered = self._template.render([self._plain(message, mark) for message in messages])
        token_ids: list[int] = []
        for index, piece in enumerate(self._control.split(rendered)):
            if index % 2:
                token_ids.append(self.tokenizer.control[piece])
            elif piece:
                token_ids.extend(self.tokenizer.encode(piece.replace(mark, "")))
        return token_ids

    def _plain(self, message: Message, mark: str) -> dict[str, object]:
        """A message as chat templates expect it."""
        if message.role not in ROLES:
            raise RequestError(f"role must be one of {', '.join(ROLES)}", field="messages")
        parts: list[dict[str, str]] = []
        for part in message.parts:
            match part:
                case TextPart(text=text):
                    for opener in self._openers:
                        text = text.replace(opener, opener + mark)
                    parts.append({"type": "text", "text": text})
                case ImagePart():
                    parts.append({"type": "image"})
        if len(parts) == 1 and parts[0]["type"] == "text":
            return {"role": message.role, "content": parts[0]["text"]}
        return {"role": message.role, "content": parts}

    def _item(self, picture: Picture, offset: int, salt: bytes) -> Item:
        geometry = self._card.image
        grid = grid_of(picture.width, picture.height, geometry)
        key = item_key(
            salt,
            self._card.fingerprint,
            grid[2] * geometry.patch_size,
            grid[1] * geometry.patch_size,
            f"{PIXEL_RULES},{picture.format}",
            picture.data,
        )
        return Item(key, offset, num_tokens(grid, geometry), grid)


def check_length(prompt: Prompt, max_tokens: int, limit: int) -> None:
    """Raise RequestError if prompt and answer together exceed ``limit`` tokens."""
    if len(prompt) + max_tokens > limit:
        raise RequestError(
            f"{len(prompt)} prompt tokens and up to {max_tokens} new ones exceed the limit of"
            f" {limit}",
            field="messages",
            status="too_large",
        )


def _picture_order(messages: Sequence[Message], num_pictures: int) -> list[int]:
    """Index of the picture at each place, in the order of the conversation."""
    order = [
        part.index for message in messages for part in message.parts if isinstance(part, ImagePart)
    ]
    if sorted(order) != list(range(num_pictures)):
        raise RequestError(
            f"{num_pictures} pictures came with {len(order)} places for them", field="messages"
        )
    return order


def _unused_character(messages: Sequence[Message]) -> str:
    """A private-use character that no text contains."""
    used = set[str]()
    for message in messages:
        for part in message.parts:
            if isinstance(part, TextPart):
                used.update(part.text)
    return next(char for char in _private_use() if char not in used)


def _private_use() -> Iterator[str]:
    """More characters than a text within any sensible limit can use up."""
    yield from map(chr, range(0xF0000, 0xFFFFE))
    yield from map(chr, range(0x100000, 0x10FFFE))
