"""Token ids to text as they come, and stop strings in that text.

A character whose bytes are split over tokens appears once it is whole; text that may be the start
of a stop string appears once it is known not to be. Results do not depend on how tokens are
grouped. Knows one stream; does not know why a sequence ends.
"""

import codecs
from collections.abc import Iterable

from triptych.inputs.tokenizer import Tokenizer


class Detokenizer:
    """Text of one sequence. Hidden tokens give none; invalid bytes give U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int]) -> str:
        """The text that ``tokens`` complete."""
        hidden, own = self._tokenizer.is_hidden, self._tokenizer.token_bytes
        return self._decoder.decode(b"".join(own(token) for token in tokens if not hidden(token)))

    def flush(self) -> str:
        """What is left when no token follows: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Finds the first stop string to be completed and cuts the text in front of it."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        if "" in strings:
            raise ValueError("strings: an empty stop string would stop everything")
        self._strings = strings
        self._held = ""
        self._longest = max(map(len, strings), default=0)

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met behind it."""
        text, self._held = self._held + text, ""
        found = [
            (start + len(string), start)
            for string in self._strings
            if (start := text.find(string)) >= 0
        ]
        if found:
            return text[: min(found)[1]], True
        cut = self._possible_start(text)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """The text held back, when no more follows."""
        text, self._held = self._held, ""
        return text

    def _possible_start(self, text: str) -> int:
        """First index from which ``text`` to its end is a beginning of a stop string."""
        for cut in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(string.startswith(text[cut:]) for string in self._strings):
                return cut
        return len(text)
