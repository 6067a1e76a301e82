"""The proxy in front of vLLM's 1E+1PD: pictures to the encoder first, then all to the other.

What vLLM's own example of a disaggregated encoder does, with as little as possible in between:
every picture of a request goes to the encoder as a request for one token, which leaves its
embeddings in the shared folder; then the request goes as it came to the instance that prefills and
decodes, whose bytes are handed back untouched. Knows no tokens and no models.
"""

import argparse
import asyncio
import json
import signal
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import uvloop

_LIMIT = 1 << 24
_CHUNK = 1 << 16
_MEDIA = {"image_url", "input_audio", "audio_url", "video_url"}


class Place(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @staticmethod
    def of(text: str) -> "Place":
        """``host:port``. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError(f"address: {text!r} is not HOST:PORT")
        return Place(host, int(port))


class Request(NamedTuple):
    """What came in."""

    method: str
    path: str
    body: bytes


def for_the_encoder(body: Mapping[str, Any]) -> list[bytes]:
    """A request for each picture of a chat completion: that picture alone, and one token."""
    parts = [
        part
        for message in body.get("messages", ())
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part.get("type") in _MEDIA
    ]
    return [
        json.dumps(
            {
                "model": body.get("model"),
                "messages": [{"role": "user", "content": [part]}],
                "max_tokens": 1,
                "temperature": 0,
                "stream": False,
            }
        ).encode()
        for part in parts
    ]


class Proxy:
    """Serves connections, a request each."""

    def __init__(self, encoder: Place, decoder: Place) -> None:
        self._encoder, self._decoder = encoder, decoder

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, whatever becomes of it."""
        try:
            request = await _read(reader)
            if request.method == "POST" and request.path == "/v1/chat/completions":
                await self._encode(request)
            await self._hand_over(request, writer)
        except (OSError, EOFError, ValueError) as error:
            with suppress(OSError):
                text = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
                writer.write(_head("HTTP/1.1 502 Bad Gateway", len(text)) + text)
                await writer.drain()
        finally:
            writer.close()

    async def _encode(self, request: Request) -> None:
        number = uuid.uuid4().hex
        bodies = enumerate(for_the_encoder(json.loads(request.body)))
        await asyncio.gather(*(self._one(body, f"{number}:{index}") for index, body in bodies))

    async def _one(self, body: bytes, number: str) -> None:
        reader, writer = await asyncio.open_connection(*self._encoder, limit=_LIMIT)
        try:
            first = f"POST /v1/chat/completions HTTP/1.1\r\nX-Request-Id: {number}"
            writer.write(_head(first, len(body)) + body)
            answer = await reader.read()
        finally:
            writer.close()
        status = answer.split(None, 2)[1:2]
        if status != [b"200"]:
            raise ValueError(f"the encoder answered {answer[:300]!r}")

    async def _hand_over(self, request: Request, client: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_connection(*self._decoder, limit=_LIMIT)
        try:
            first = f"{request.method} {request.path} HTTP/1.1"
            writer.write(_head(first, len(request.body)) + request.body)
            while piece := await reader.read(_CHUNK):
                client.write(piece)
                await client.drain()
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    words = (await reader.readline()).decode("latin-1").split()
    if len(words) != 3:
        raise EOFError("no request")
    length = 0
    while line := (await reader.readline()).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return Request(words[0], words[1], await reader.readexactly(length))


def _head(first: str, length: int) -> bytes:
    return (
        f"{first}\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


async def _main(words: argparse.Namespace) -> None:
    proxy = Proxy(Place.of(words.encoder), Place.of(words.decoder))
    ended = asyncio.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(one, ended.set)
    listen = Place.of(words.listen)
    async with await asyncio.start_server(proxy.serve, *listen, limit=_LIMIT):
        await ended.wait()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--encoder", required=True, metavar="HOST:PORT")
    parser.add_argument("--decoder", required=True, metavar="HOST:PORT")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as our router does
        runner.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
