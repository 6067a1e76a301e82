"""Text to token ids and token ids to bytes: byte-level BPE of a model folder, or plain bytes.

Text is only ever text here: control tokens (``<|im_end|>`` and the like) are looked up by name by
whoever may write them, and are never recognised inside what ``encode`` is given. Knows no template.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from triptych.core.errors import ConfigError
from triptych.inputs import oracle_words
from triptych.inputs.model_card import read_json


class Tokenizer(Protocol):
    """One model's vocabulary. Safe to use from several threads."""

    control: Mapping[str, int]
    """Every added token by its text. None of them is recognised by ``encode``."""

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """A token's own bytes, possibly a part of a character; empty for ids without text."""
        ...

    def is_hidden(self, token: int) -> bool:
        """Whether the token is left out of the answer's text, as end-of-sequence tokens are."""
        ...


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of the model folder ``path``, or the oracle's. Raises ConfigError."""
    if path == oracle_words.NAME:
        return ByteTokenizer()
    return BpeTokenizer(Path(path) / "tokenizer.json")


class ByteTokenizer:
    """The oracle's vocabulary: token = byte."""

    control: Mapping[str, int] = oracle_words.CONTROL_TEXT

    def encode(self, text: str) -> list[int]:
        """The bytes of the text."""
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        """One byte, a control token's name, or nothing."""
        return bytes([token]) if token < 256 else _ORACLE_NAMES.get(token, b"")

    def is_hidden(self, token: int) -> bool:
        """Control tokens are."""
        return token in _ORACLE_NAMES


class BpeTokenizer:
    """Byte-level BPE from a ``tokenizer.json``, run by the ``tokenizers`` library."""

    def __init__(self, path: Path) -> None:
        tree = read_json(path)
        added = tree.get("added_tokens") or []
        _check(tree, added)
        self.control: Mapping[str, int] = {token["content"]: token["id"] for token in added}
        self._hidden = frozenset(token["id"] for token in added if token.get("special"))
        # Without its added tokens the library cannot see one in a client's text.
        plain = json.dumps({**tree, "added_tokens": [], "truncation": None, "padding": None})
        self._plain = tokenizers.Tokenizer.from_str(plain)
        self._bytes = {
            token: _unmap(text) for text, token in self._plain.get_vocab(False).items()
        } | {token: text.encode() for text, token in self.control.items()}

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, normalised as the model's tokenizer does."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The token's bytes; empty for ids that the vocabulary leaves unused."""
        return self._bytes.get(token, b"")

    def is_hidden(self, token: int) -> bool:
        """Tokens that the model folder calls special."""
        return token in self._hidden


_ORACLE_NAMES = {token: text.encode() for text, token in oracle_words.CONTROL_TEXT.items()}


def _check(tree: dict[str, Any], added: list[dict[str, Any]]) -> None:
    """Refuse what would be tokenised otherwise than the model was trained on."""
    decoder = tree.get("decoder") or {}
    kinds = [decoder, *decoder.get("decoders", ())]
    if not any(kind.get("type") == "ByteLevel" for kind in kinds):
        raise ConfigError("model.path: tokenizer.json is not byte-level BPE")
    for token in added:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            raise ConfigError(
                f"model.path: added token {token['content']} of tokenizer.json strips its"
                " neighbours, which is not supported"
            )


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character (GPT-2): printable Latin-1 bytes
    as themselves, the others as U+0100 and following, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_BYTES = _byte_alphabet()


def _unmap(text: str) -> bytes:
    """Bytes of a vocabulary entry; one with other characters stands for itself."""
    values = [_BYTES.get(char) for char in text]
    return bytes(v for v in values if v is not None) if None not in values else text.encode()
