"""What strangers send: only typed 4xx, nothing of the server's inside shows, nothing is kept."""

import asyncio
import base64
import io
import json
import re
import struct
import time
import zlib

import grpc
import httpx
import pytest
from PIL import Image

from tests.patience import PATIENCE_S
from tests.router.doors.scripted import (
    ScriptedService,
    bare_connection,
    grpc_door,
    http_door,
    post_bytes,
    until,
)
from tests.router.doors.test_http_door import HELLO, data_url, picture_body, png

LEAK = re.compile(
    r"0x[0-9a-f]{4,}|/(?:work|usr|home|root|tmp|etc|dev)/|Traceback|File \"|\.py\b|site-packages"
    r"|<class|object at|PIL|msgspec|python",
    re.IGNORECASE,
)
"""What an answer must never contain."""


def with_option(**values):
    return json.dumps({**HELLO, **values}).encode()


def raw_option(text: str):
    return json.dumps(HELLO).encode()[:-1] + b"," + text.encode() + b"}"


def content(part):
    return json.dumps({"messages": [{"role": "user", "content": part}]}).encode()


BODIES = {
    "empty": (b"", ""),
    "not json": (b"hello", ""),
    "cut": (b'{"messages": [', ""),
    "array": (b"[]", ""),
    "number": (b"1", ""),
    "null": (b"null", ""),
    "not utf-8": (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', None),
    "lone surrogate": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None),
    "deep arrays": (b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", None),
    "deep objects": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, None),
    "deep content": (content([[[[[]]]]]), "messages[0].content[0]"),
    "no messages": (b"{}", None),
    "messages empty": (b'{"messages": []}', "messages"),
    "messages null": (b'{"messages": null}', "messages"),
    "message a string": (b'{"messages": ["hi"]}', "messages[0]"),
    "no role": (b'{"messages": [{"content": "x"}]}', "messages[0]"),
    "role": (b'{"messages": [{"role": "root", "content": "x"}]}', "messages[0].role"),
    "part kind": (content([{"type": "video_url"}]), "messages[0].content[0].type"),
    "part without kind": (content([{"text": "x"}]), "messages[0].content[0]"),
    "text a number": (content([{"type": "text", "text": 1}]), "messages[0].content[0].text"),
    "nan": (raw_option('"temperature": NaN'), None),
    "infinity": (raw_option('"temperature": Infinity'), None),
    "1e400": (raw_option('"temperature": 1e400'), "temperature"),
    "temperature low": (with_option(temperature=-0.1), "temperature"),
    "temperature high": (with_option(temperature=2.1), "temperature"),
    "temperature text": (with_option(temperature="1"), "temperature"),
    "top_p": (with_option(top_p=0), "top_p"),
    "top_p high": (with_option(top_p=1.01), "top_p"),
    "top_k": (with_option(top_k=-2), "top_k"),
    "min_p": (with_option(min_p=1.5), "min_p"),
    "n negative": (with_option(n=-1), "n"),
    "n zero": (with_option(n=0), "n"),
    "n over": (with_option(n=9), "n"),
    "n 2^31": (with_option(n=2**31), "n"),
    "n 2^63": (with_option(n=2**63), "n"),
    "n 2^64": (with_option(n=2**64), "n"),
    "n huge": (raw_option('"n": ' + "9" * 4000), "n"),
    "n float": (with_option(n=1.5), "n"),
    "n bool": (with_option(n=True), "n"),
    "max_tokens zero": (with_option(max_tokens=0), "max_tokens"),
    "max_tokens over": (with_option(max_tokens=4097), "max_tokens"),
    "max_tokens 2^63": (with_option(max_tokens=2**63), "max_tokens"),
    "max_completion_tokens": (with_option(max_completion_tokens=0), "max_completion_tokens"),
    "seed 2^63": (with_option(seed=2**63), "seed"),
    "seed": (with_option(seed=-(2**63) - 1), "seed"),
    "stop empty": (with_option(stop=""), "stop"),
    "stop empties": (with_option(stop=["a", ""]), "stop"),
    "stop many": (with_option(stop=["a"] * 9), "stop"),
    "stop long": (with_option(stop="ä" * 129), "stop"),
    "stop kind": (with_option(stop=[1]), "stop[0]"),
    "stop tokens": (with_option(stop_token_ids=[512]), "stop_token_ids"),
    "logprobs": (with_option(logprobs=True, top_logprobs=21), "top_logprobs"),
    "logprobs off": (with_option(top_logprobs=2), "top_logprobs"),
    "logprobs negative": (with_option(logprobs=True, top_logprobs=-1), "top_logprobs"),
    "slo class": (with_option(slo={"class": "fast"}), "slo.class"),
    "slo ttft": (with_option(slo={"ttft_ms": -5}), "slo.ttft_ms"),
    "slo kind": (with_option(slo="strict"), "slo"),
    "timeout": (with_option(timeout_s=0), "timeout_s"),
    "timeout over": (with_option(timeout_s=601), "timeout_s"),
    "model": (with_option(model="gpt-4"), "model"),
    "many messages": (with_option(messages=HELLO["messages"] * 257), "messages"),
    "many parts": (content([{"type": "text", "text": ""}] * 1025), "messages"),
    "long text": (content("x" * 262_145), "messages"),
    "many pictures": (
        content([{"type": "image_url", "image_url": {"url": data_url(png())}}] * 17),
        "messages",
    ),
    "remote picture": (
        json.dumps(picture_body("http://127.0.0.1:9/x.png")).encode(),
        "messages[0].content[1].image_url.url",
    ),
}


async def send(client, body: bytes):
    headers = {"content-type": "application/json"}
    return await client.post("/v1/chat/completions", content=body, headers=headers)


def assert_refused(answer, field):
    assert answer.status_code in (400, 404, 413), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(answer.content) < 1000
    assert not LEAK.search(answer.text), answer.text
    if field is not None:
        assert (error["param"] or "") == field


async def test_bodies():
    service = ScriptedService()
    async with http_door(service) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        for name, (body, field) in BODIES.items():
            before = time.process_time()
            answer = await send(client, body)
            assert time.process_time() - before < 2, name
            assert_refused(answer, field)
    assert service.requests == [] and service.num_tickets == 0


URLS = [
    "http://169.254.169.254/latest", "https://example.com/a.png", "HTTP://x/", "//x/y.png",
    "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "ftp://x/a.png", "gopher://x",
    "http:\\\\127.0.0.1\\a.png", "javascript:alert(1)", "data:", "data:,", "data:image/png,abc",
    "data:image/png;base64", "data:image/png;base64,", "data:image/png;base64,####",
    "data:image/png;base64,AAA", "data:image/png;base64,A A A=", "data:video/jpeg;base64,AAAA",
    "data:" + "x" * 5000 + ";base64,AAAA", "data:image/svg+xml;base64,PHN2Zy8+", "", "\x00", "ünï",
]  # fmt: skip


async def test_urls_other_than_data():
    service = ScriptedService()
    contacted = []
    canary = await asyncio.start_server(lambda _, w: contacted.append(w.close()), "127.0.0.1", 0)
    port = canary.sockets[0].getsockname()[1]
    spellings = [f"http://{host}:{port}/a.png" for host in ("127.0.0.1", "localhost", "[::1]")]
    async with canary, http_door(service) as url, httpx.AsyncClient(base_url=url) as client:
        for address in [*URLS, *spellings]:
            answer = await send(client, json.dumps(picture_body(address)).encode())
            assert_refused(answer, "messages[0].content[1].image_url.url")
    assert contacted == [] and service.requests == []


def saved(format_name, size=(20, 20), mode="RGB", **more):
    out = io.BytesIO()
    Image.new(mode, size).save(out, format_name, **more)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


OTHER_FORMATS = (
    "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "EPS", "PDF", "JPEG2000", "MSP",
    "XBM", "SPIDER", "ICNS", "BLP", "QOI", "AVIF",
)  # fmt: skip


def pictures():
    yield "empty", b""
    yield "one byte", b"\x89"
    yield "text", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    yield "zip", b"PK\x03\x04" + bytes(100)
    for name in OTHER_FORMATS:
        mode = {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}.get(name, "RGB")
        try:
            yield name, saved(name, mode=mode)
        except (KeyError, OSError, ValueError, DeprecationWarning):
            continue  # this Pillow cannot write the format
    for side in (100_000, 2**31 - 1):
        yield f"png {side}", png_that_claims(side, side)
    yield "png zero", png_that_claims(0, 10)
    yield "png long", png_that_claims(16_385, 100)
    yield "png thin", png_that_claims(1, 101)
    gif = bytearray(saved("GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield "gif 65535", bytes(gif)
    jpeg = bytearray(saved("JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    yield "jpeg 65535", bytes(jpeg)
    webp = bytearray(saved("WEBP", lossless=True))
    webp[21:25] = b"\xff\xff\xff\xff"
    yield "webp 16384", bytes(webp)
    for name in ("PNG", "JPEG", "WEBP", "GIF"):
        for cut in (12, 20):
            yield f"{name} cut at {cut}", saved(name)[:cut]
    yield "png magic, bmp inside", b"\x89PNG\r\n\x1a\n" + saved("BMP")
    yield "riff, not webp", b"RIFF\x10\0\0\0WAVE" + bytes(100)


async def test_pictures_at_both_doors():
    service = ScriptedService()
    names = []
    async with (
        http_door(service) as url,
        grpc_door(service) as address,
        httpx.AsyncClient(base_url=url) as client,
        grpc.aio.insecure_channel(address) as channel,
    ):
        for name, data in pictures():
            names.append(name)
            answer = await send(client, json.dumps(picture_body(data_url(data))).encode())
            assert answer.status_code in (400, 413), name
            assert_refused(answer, "messages[0].content[1].image_url.url")
            status, details = await ask(channel, data)
            assert status is grpc.StatusCode.INVALID_ARGUMENT, name
            assert not LEAK.search(details), details
    assert len(names) > 35
    assert service.requests == [] and service.num_tickets == 0


async def ask(channel, data: bytes):
    from triptych.client.connection import methods
    from triptych.client.options import make_request

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in methods(channel).generate(make_request("what?", [data], {})):
            pass
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("excess", [-1, 0, 1])
async def test_body_at_its_limit(excess):
    service = ScriptedService()
    limit = 5000
    base = len(json.dumps({**HELLO, "pad": ""}).encode())
    body = json.dumps({**HELLO, "pad": "x" * (limit - base + excess)}).encode()
    assert len(body) == limit + excess

    async def pieces():
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    async with http_door(service, max_body_bytes=limit) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            for content in (body, pieces()):
                answer = await client.post("/v1/chat/completions", content=content)
                assert answer.status_code == (413 if excess > 0 else 200)
    assert service.num_tickets == 0


async def test_body_that_lies_about_its_length():
    service = ScriptedService()
    async with http_door(service, max_body_bytes=1000) as url:
        for length in ("99999999999999999999999", "-5", "1e3", "5000"):
            async with bare_connection(url) as (reader, writer):
                writer.write(post_bytes(b"{}", length))
                async with asyncio.timeout(PATIENCE_S):
                    line = await reader.readline()
                assert b" 413 " in line or b" 400 " in line, line
        await until(lambda: service.num_tickets == 0)


async def test_headers_over_the_limit():
    service = ScriptedService()
    async with http_door(service) as url, httpx.AsyncClient(base_url=url) as client:
        try:
            answer = await client.get("/live", headers={"x": "y" * 1_000_000})
            assert answer.status_code in (400, 431)
        except (httpx.ReadError, httpx.WriteError):
            assert (await client.get("/live")).status_code == 200, "closed before all of it came"
        answer = await client.post(
            "/v1/chat/completions", json=HELLO, headers={"content-encoding": "gzip"}
        )
        assert_refused(answer, "content-encoding")


async def test_bytes_that_are_no_message():
    service = ScriptedService()
    async with grpc_door(service) as address, grpc.aio.insecure_channel(address) as channel:
        for data in (b"\xff" * 50, b"\x12\xff\xff\xff\xff\x0f", b"\0"):
            call = channel.unary_stream("/triptych.v1.Inference/Generate")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call(data):
                    pass
            assert not LEAK.search(caught.value.details() or "")
    await until(lambda: service.num_tickets == 0)
    assert service.requests == []


async def test_the_loop_stays_free_while_bodies_are_parsed():
    service = ScriptedService()
    large = json.dumps(picture_body(data_url(b"\x89PNG\r\n\x1a\n" + bytes(12_000_000)))).encode()
    worst_s = 0.0

    async def watch():
        """The most that this process computed between two turns of the loop: unlike their
        distance in time, it says nothing of what else the machine does."""
        nonlocal worst_s
        while True:
            before = time.process_time()
            await asyncio.sleep(0.005)
            worst_s = max(worst_s, time.process_time() - before)

    async with http_door(service) as url:
        watcher = asyncio.create_task(watch())
        # A client of another process: its own work must not count.
        code = (
            "import sys,urllib.request as u,urllib.error as e\n"
            "d=sys.stdin.buffer.read()\n"
            "for _ in range(3):\n"
            " try: u.urlopen(u.Request(sys.argv[1]+'/v1/chat/completions',d))\n"
            " except e.HTTPError as x: assert x.code==400\n"
        )
        import sys

        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, url, stdin=asyncio.subprocess.PIPE
        )
        await process.communicate(large)
        watcher.cancel()
    assert process.returncode == 0
    assert worst_s < 0.25, "half a second of parsing and decoding must not stand in the way"


def test_base64_of_the_tests():
    assert base64.b64decode(data_url(png()).partition(",")[2]) == png()
