"""Decoding children: right pixels, and a child that dies takes nothing with it."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.inputs.pictures import encoded, noise
from tests.patience import PATIENCE_S
from tests.router.doors.test_hostile import png_that_claims
from tests.signals import stop
from triptych.core.config import LimitsConfig
from triptych.core.errors import RequestError, Unavailable
from triptych.inputs.decode import DecoderPool
from triptych.inputs.images import grid_of, resized
from triptych.inputs.model_card import load_card

CARD = load_card("examples/demo_model")


@asynccontextmanager
async def pool_of(**limits):
    pool = DecoderPool(msgspec.structs.replace(LimitsConfig(), **limits))
    try:
        yield pool
    finally:
        await pool.close()
        assert pool.num_children == 0


def pids():
    text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in text.split() if b"decode_child" in proc(pid, "cmdline")]


def proc(pid, name):
    return Path(f"/proc/{pid}/{name}").read_bytes()


@cache
def large() -> bytes:
    """A picture that takes a tenth of a second to decode."""
    return encoded(noise(4000, 3000), compress_level=1)


async def decode_large(pool):
    return await pool.decode(large(), "PNG", 56, 56)


async def decode(pool, image, format_name="PNG", **more):
    width, height = resized(*image.size, CARD.image)
    return await pool.decode(encoded(image, format_name, **more), format_name, width, height)


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (17, 5), (112, 112), (113, 300), (640, 333), (1000, 20)]
)
async def test_pixels_equal_transformers(width, height):
    """Patches made of our pixels are Transformers' patches, to the last bit."""
    geometry = CARD.image
    judge = Qwen2VLImageProcessorPil(
        size={"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}
    )
    async with pool_of() as pool:
        for format_name, mode in (("PNG", "RGB"), ("PNG", "L"), ("WEBP", "RGB"), ("JPEG", "RGB")):
            image = noise(width, height, mode)
            more = {"lossless": True} if format_name == "WEBP" else {}
            got = await decode(pool, image, format_name, **more)
            again = Image.open(io.BytesIO(encoded(image, format_name, **more))).convert("RGB")
            expected = judge(images=[again], return_tensors="np")
            assert tuple(expected["image_grid_thw"][0]) == grid_of(width, height, geometry)
            judged = judge.patchify(
                ((got.astype(np.float64) * (1 / 255)).astype(np.float32).transpose(2, 0, 1)
                 - np.array(geometry.mean, np.float32)[:, None, None])
                / np.array(geometry.std, np.float32)[:, None, None],
                14, 2, 2,
            )[0]  # fmt: skip
            np.testing.assert_array_equal(judged, expected["pixel_values"])


async def test_children_are_few_and_kept():
    async with pool_of(decode_workers=2) as pool:
        assert pids() == []
        images = [noise(100 + i, 60, seed=i) for i in range(12)]
        answers = await asyncio.gather(*(decode(pool, image) for image in images))
        for image, answer in zip(images, answers, strict=True):
            size = resized(*image.size, CARD.image)
            assert answer.tobytes() == image.resize(size, 3).tobytes()
        first = pids()
        assert len(first) == 2 == pool.num_children
        await decode(pool, images[0])
        assert pids() == first
    assert pids() == []


async def test_who_asks_again_at_once_does_not_go_first():
    """A child goes to whoever waited longest, also when the one before it wants more."""
    async with pool_of(decode_workers=1) as pool:
        done = []

        async def ask(name, times):
            for _ in range(times):
                await decode(pool, noise(28, 28))
                done.append(name)

        await asyncio.gather(ask("greedy", 3), ask("patient", 1), ask("late", 1))
    assert done == ["greedy", "patient", "late", "greedy", "greedy"]


async def test_a_child_that_runs_goes_before_one_to_be_started():
    async with pool_of(decode_workers=2) as pool:
        pool.warm()
        assert pool.num_children == 2
        cancelled = asyncio.create_task(decode_large(pool))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert pool.num_children == 1
        await decode(pool, noise(28, 28))
        assert pool.num_children == 1


async def test_two_may_close_it_at_once():
    async with pool_of(decode_workers=3) as pool:
        busy = [asyncio.create_task(decode_large(pool)) for _ in range(2)]
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(pool.close(), pool.close())
        assert all(
            isinstance(each, Unavailable)
            for each in await asyncio.gather(*busy, return_exceptions=True)
        )


async def test_a_broken_picture_costs_nobody_else():
    good = noise(50, 50)
    data = encoded(noise(200, 200))
    async with pool_of() as pool:
        await decode(pool, good)
        (child,) = pids()
        broken = [data[: len(data) // 2], b"\x89PNG\r\n\x1a\nxx", b"", png_that_claims(50, 50)]
        for bad in broken:
            with pytest.raises(RequestError) as caught:
                await pool.decode(bad, "PNG", 56, 56)
            assert "/" not in caught.value.public
        with pytest.raises(RequestError):
            await pool.decode(encoded(good), "GIF", 56, 56)
        await decode(pool, good)
        assert pids() == [child]


async def test_too_much_memory():
    async with pool_of(decode_memory_bytes=30_000_000) as pool:
        with pytest.raises(RequestError, match="memory|limits") as caught:
            await decode_large(pool)
        assert caught.value.field == "picture"
        await decode(pool, noise(50, 50))


async def test_too_much_time():
    async with pool_of(decode_timeout_s=0.02) as pool:
        for _ in range(2):
            with pytest.raises(RequestError, match="limits"):
                await decode_large(pool)
        assert len(pids()) <= 1


async def test_a_child_that_hangs_is_replaced():
    async with pool_of(decode_timeout_s=0.5) as pool:
        await decode(pool, noise(50, 50))
        (child,) = pids()
        stop(child)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(RequestError, match="limits"):
                await decode(pool, noise(50, 50))
        await decode(pool, noise(50, 50))
        assert child not in pids()


async def test_a_killed_child_costs_no_picture():
    async with pool_of() as pool:
        await decode(pool, noise(50, 50))
        expected = await decode_large(pool)
        (child,) = pids()
        work = asyncio.create_task(decode_large(pool))
        await asyncio.sleep(0.03)
        os.kill(child, signal.SIGKILL)
        np.testing.assert_array_equal(await work, expected)
        (child,) = pids()
        os.kill(child, signal.SIGKILL)
        await asyncio.sleep(0.1)
        await decode(pool, noise(50, 50))


async def test_a_picture_that_ends_two_children_is_refused():
    async with pool_of() as pool:
        work = asyncio.create_task(decode_large(pool))
        killed = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(killed) < 2:
                for child in set(pids()) - killed:
                    os.kill(child, signal.SIGKILL)
                    killed.add(child)
                await asyncio.sleep(0.002)
            with pytest.raises(RequestError, match="limits"):
                await work
        assert pids() == []
        await decode(pool, noise(50, 50))


async def test_a_picture_that_takes_too_long_is_tried_once():
    class Counting(DecoderPool):
        num_started = 0

        def _start(self):
            self.num_started += 1
            return super()._start()

    pool = Counting(msgspec.structs.replace(LimitsConfig(), decode_timeout_s=0.02))
    with pytest.raises(RequestError, match="limits"):
        await decode_large(pool)
    assert pool.num_started == 1
    await pool.close()


async def test_warm_children_are_there_before_the_first_picture():
    async with pool_of(decode_workers=3) as pool:
        await decode(pool, noise(50, 50))
        pool.warm()
        async with asyncio.timeout(PATIENCE_S):
            while len(before := pids()) < 3:  # one that starts has no name yet
                await asyncio.sleep(0.001)
        assert len(before) == 3 == pool.num_children
        pool.warm()
        await asyncio.gather(*(decode(pool, noise(50, 50, seed=seed)) for seed in range(7)))
        assert pids() == before
    pool.warm()
    assert pids() == []


async def test_no_child_can_be_started(monkeypatch):
    async with pool_of() as pool:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere/python")
            pool.warm()
            with pytest.raises(Unavailable):
                await decode(pool, noise(50, 50))
        await decode(pool, noise(50, 50))


async def test_cancelled_work_leaves_no_old_answer_behind():
    async with pool_of() as pool:
        for delay_s in (0.0, 0.001, 0.03, 0.06):
            work = asyncio.create_task(decode_large(pool))
            await asyncio.sleep(delay_s)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            image = noise(70, 90, seed=3)
            size = resized(*image.size, CARD.image)
            assert (await decode(pool, image)).tobytes() == image.resize(size, 3).tobytes()


@pytest.mark.usefixtures("no_leak")
async def test_close_ends_work_and_waiters():
    pool = DecoderPool(LimitsConfig())
    large()
    work = [asyncio.create_task(decode_large(pool)) for _ in range(3)]
    await asyncio.sleep(0.15)
    await pool.close()
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        assert isinstance(outcome, Unavailable | np.ndarray)
    with pytest.raises(Unavailable):
        await decode(pool, noise(5, 5))
    await pool.close()


def test_children_die_with_their_parent():
    program = textwrap.dedent(
        """
        import asyncio, os, sys
        from tests.inputs.pictures import encoded, noise
        from triptych.core.config import LimitsConfig
        from triptych.inputs.decode import DecoderPool

        async def main():
            pool = DecoderPool(LimitsConfig())
            await pool.decode(encoded(noise(50, 50)), "PNG", 56, 56)
            (child,) = pool._children
            print(child._process.pid, flush=True)
            os.kill(os.getpid(), 9)

        asyncio.run(main())
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == -9, ended.stderr
    pid = int(ended.stdout)
    deadline = time.monotonic() + PATIENCE_S
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        if proc(pid, "stat").rpartition(b")")[2].split()[0] == b"Z":
            break
        time.sleep(0.02)
    else:
        assert not os.path.exists(f"/proc/{pid}")


async def test_a_child_is_confined():
    async with pool_of(decode_memory_bytes=100_000_000) as pool:
        await decode(pool, noise(50, 50))
        (child,) = pids()
        limits = proc(child, "limits").decode().splitlines()
        rows = {line[:26].strip(): line[26:].split() for line in limits}
        assert int(rows["Max address space"][0]) < 1_000_000_000
        assert rows["Max file size"][0] == "0" and rows["Max core file size"][0] == "0"
        assert proc(child, "environ") == b""
        maps = proc(child, "maps").decode()
        assert "torch" not in maps and "numpy" not in maps
