"""``triptych ask``: pictures and a question in, the streamed answer and its timeline out."""

import argparse
import sys
from pathlib import Path

from triptych.client import Client, Timeline
from triptych.core.errors import RequestError, Unavailable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("words", nargs="+", metavar="PICTURE... QUESTION")
    parser.add_argument("--grpc", metavar="HOST:PORT", default="127.0.0.1:50051")
    parser.add_argument("--key", metavar="KEY", default="", help="API key")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)


def run(words: argparse.Namespace) -> int:
    """Stream the answer to standard output, then one line of where the time went."""
    *names, question = words.words
    pictures = [_picture(name) for name in names]
    try:
        with Client(words.grpc, api_key=words.key) as client:
            _stream(client, question, pictures, words)
    except Unavailable as error:
        if "connect" not in str(error):
            raise
        raise Unavailable(f"no server answers at {words.grpc}; `make serve` starts one") from error
    return 0


def _stream(
    client: Client, question: str, pictures: list[bytes], words: argparse.Namespace
) -> None:
    for part in client.generate(
        question,
        pictures=pictures,
        max_tokens=words.max_tokens,
        temperature=words.temperature,
    ):
        if part.final is None:
            sys.stdout.write(part.text)
            sys.stdout.flush()
        else:
            sys.stdout.write("\n")
            print(timeline(part.final.timeline), file=sys.stderr)


def _picture(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise RequestError(f"{name}: {error.strerror}", field="picture") from error


def timeline(times: Timeline) -> str:
    """Where the time went, in one line."""
    parts = (
        ("queue", times.queue_s),
        ("encode", times.encode_s),
        ("transfer", times.encode_transfer_s),
        ("prefill", times.prefill_s),
        ("transfer", times.kv_transfer_s),
        ("first token", times.ttft_s),
        ("TPOT", times.tpot_s),
    )
    return " | ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in parts)
