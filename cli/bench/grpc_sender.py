"""A Triptych server over gRPC, as ``bench.live`` sends to any server. Knows ``triptych.client``.

It stands here because ``bench`` sees what a stranger's client sees and nothing of ours.
"""

from bench.client import Refused
from bench.live.sender import Answer, OnTokens
from bench.live.turns import Ask
from triptych.client import AsyncClient, Final, Turn
from triptych.core.errors import DeadlineExceeded, Overloaded, TriptychError, Unavailable

_PHASES = ("queue", "encode", "encode_transfer", "prefill", "kv_transfer")


class GrpcSender:
    """The gRPC door at ``address`` (``host:port``); one channel for all requests."""

    def __init__(self, address: str, api_key: str = "") -> None:
        self._address, self._key = address, api_key
        self._client: AsyncClient | None = None

    async def start(self) -> None:
        """Connect and see that it serves something."""
        self._client = AsyncClient(self._address, self._key)
        try:
            await self._client.list_models()
        except TriptychError as error:
            raise ValueError(f"{self._address}: {error.public}") from error

    def prepare(self, ask: Ask) -> Ask:
        """The call makes its own message."""
        return ask

    async def send(self, prepared: Ask, on_tokens: OnTokens) -> Answer:
        """Send and read to the end; see ``sender.Sender``."""
        if self._client is None:
            raise ValueError("the sender was not started")
        generation = self._client.generate(
            [Turn(turn.role, turn.parts) for turn in prepared.turns],
            max_tokens=prepared.num_output,
            ignore_eos=True,
            slo=prepared.slo or "batch",
            timeout_s=prepared.timeout_s,
        )
        text: list[str] = []
        try:
            async for part in generation:
                if part.tokens:
                    on_tokens(len(part.tokens))
                text.append(part.text)
        except (Overloaded, Unavailable) as error:
            raise Refused(f"{error.code}: {error.public}") from None
        except DeadlineExceeded:
            raise TimeoutError from None
        except TriptychError as error:
            raise ValueError(f"{error.code}: {error.public}") from None
        finally:
            generation.close()
        if generation.final is None:
            raise EOFError("an answer without its result")
        return _answer("".join(text), generation.final)

    async def close(self) -> None:
        """Close the channel."""
        if self._client is not None:
            await self._client.close()


def _answer(text: str, final: Final) -> Answer:
    usage, times = final.usage, final.timeline
    return Answer(
        text=text,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        image_tokens=usage.image_tokens,
        cached_tokens=usage.cached_tokens,
        attempts=times.attempts,
        route=times.route,
        phases={name: getattr(times, f"{name}_s") for name in _PHASES},
    )
