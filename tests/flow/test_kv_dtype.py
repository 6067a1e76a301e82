"""KV as codes in a server: moved, cached, kept in tiers; the demo model's own questions."""

import asyncio

import pytest

from tests.checkpoints import DEMO
from tests.flow.asked import questions
from tests.flow.harness import config, flow
from triptych.core.errors import ConfigError

END = 686
"""The demo model's end of an answer."""


async def answers(topology: str, *settings: str) -> list[list[int]]:
    """To the model's own questions, each asked twice: the second time from caches."""
    async with flow(config(topology, *settings, model=str(DEMO))) as running:
        found = []
        for _ in range(2):
            asked = [running.request(one, max_tokens=24, eos=(END,)) for one in questions(16)]
            found += await asyncio.gather(*(running.tokens(request) for request in asked))
        return found


@pytest.fixture(scope="module")
def exact() -> list[list[int]]:
    return asyncio.run(answers("EPD1"))


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("topology", "settings"),
    [
        ("EPD1", ()),
        ("E1,P1,D1", ("transfer.transport=shm",)),
        ("E1,P2,D2", ("transfer.transport=tcp", "transfer.layerwise=true")),
        ("E1,PD2", ("cache.host_bytes=4194304", "cache.kv_blocks=64")),
        ("EP1,D1", ("model.tensor_parallel=2", "model.parallel=processes")),
    ],
)
async def test_answers_are_those_of_exact_kv(topology, settings, dtype, exact) -> None:
    assert await answers(topology, f"cache.kv_dtype={dtype}", *settings) == exact


async def test_codes_are_not_quantised_once_more() -> None:
    for key in ("transfer.wire", "cache.at_rest"):
        settings = ("cache.kv_dtype=int8", f"{key}=fp8", "cache.host_bytes=1048576")
        with pytest.raises(ConfigError, match=rf"{key}: fp8 is for numbers, the blocks hold codes"):
            async with flow(config("E1,P1,D1", *settings, model=str(DEMO))):
                pass


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ('cluster.roles={P = ["cache.kv_dtype=int8"]}', r"cache\.kv_dtype"),
        ('cluster.roles={P = ["cache.block_size=32"]}', r"cache\.block_size"),
        ('cluster.roles={D = ["model.tensor_parallel=2"]}', r"model\.tensor_parallel"),
    ],
)
async def test_roles_that_could_not_take_each_others_codes_are_refused(own, key) -> None:
    settings = (own,) if "kv_dtype" in own else (own, "cache.kv_dtype=fp8")
    with pytest.raises(ConfigError, match=rf"cluster\.roles: {key} has to be the same"):
        async with flow(config("E1,P1,D1", *settings, model=str(DEMO))):
            pass
