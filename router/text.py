"""From tokens to what a client reads: text, stop strings, token infos of one choice.

Knows the tokenizer; does not know where tokens come from.
"""

from collections.abc import Sequence
from typing import Protocol

from router.answer import Delta, TokenInfo
from triptych.core.event import Token
from triptych.inputs.detokenizer import Detokenizer, StopMatcher
from triptych.inputs.tokenizer import Tokenizer


class Spelling(Protocol):
    """What a choice's tokens say, as they come."""

    is_stopped: bool
    """Whether a stop string was met: nothing follows."""

    def push(self, tokens: Sequence[Token]) -> Delta:
        """What ``tokens`` add."""
        ...

    def finish(self, reason: str) -> Delta:
        """The rest, and why it ended."""
        ...


class ChoiceText:
    """Text of one choice as it grows. ``is_stopped`` once a stop string was met."""

    def __init__(self, tokenizer: Tokenizer, choice: int, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._choice = choice
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stop)
        self.is_stopped = False

    def push(self, tokens: Sequence[Token]) -> Delta:
        """The text that ``tokens`` complete, possibly none yet; of those behind a stop string
        nothing."""
        text, infos = "", []
        for token in tokens:
            more, self.is_stopped = self._matcher.push(self._detokenizer.push([token.id]))
            text += more
            infos.append(self._info(token))
            if self.is_stopped:
                break
        return Delta(self._choice, text, tuple(infos))

    def finish(self, reason: str) -> Delta:
        """The rest of the text, and why it ended."""
        if self.is_stopped:
            return Delta(self._choice, "", (), "stop")
        text, stopped = self._matcher.push(self._detokenizer.flush())
        if not stopped:
            text += self._matcher.flush()
        return Delta(self._choice, text, (), "stop" if stopped else reason)

    def _info(self, token: Token) -> TokenInfo:
        top = tuple(self._bare(token_id, logprob) for token_id, logprob in token.top)
        info = self._bare(token.id, token.logprob)
        return TokenInfo(info.id, info.text, info.raw, info.logprob, top)

    def _bare(self, token_id: int, logprob: float | None) -> TokenInfo:
        raw = self._tokenizer.token_bytes(token_id)
        return TokenInfo(token_id, raw.decode("utf-8", errors="replace"), raw, logprob)
