"""Sparse prefill in a server: the demo model's own questions, whatever the topology."""

import asyncio

import pytest

from tests.checkpoints import DEMO
from tests.flow.asked import questions
from tests.flow.harness import config, flow
from triptych.core.errors import ConfigError

END = 686
"""The demo model's end of an answer."""
LONG = ("sparse.min_tokens=64", "sparse.tile=16")
NEARLY_ALL = ("sparse.selector=xattention", "sparse.tau=0.95", *LONG)
ALMOST_NOTHING = (
    "sparse.selector=local_and_history", "sparse.local_tokens=16", "sparse.history=0", *LONG
)  # fmt: skip


async def answers(topology: str, *settings: str) -> list[list[int]]:
    """To questions about pictures of 144 and of 120 tokens, each asked twice."""
    async with flow(config(topology, *settings, model=str(DEMO))) as running:
        found = []
        for _ in range(2):
            asked = [
                running.request(question, max_tokens=24, eos=(END,))
                for question in questions(12, ((336, 336), (336, 280)))
            ]
            found += await asyncio.gather(*(running.tokens(request) for request in asked))
        return found


@pytest.fixture(scope="module")
def dense() -> list[list[int]]:
    return asyncio.run(answers("EPD1"))


@pytest.mark.parametrize("topology", ["EPD1", "E1,PD1", "E1,P1,D1"])
async def test_answers_are_those_of_dense_attention_where_most_is_kept(topology, dense) -> None:
    """Of 120 such questions two more are wrong (docs/sparse.md); here one of twelve may be."""
    found = await answers(topology, *NEARLY_ALL)
    assert sum(one == other for one, other in zip(found, dense, strict=True)) >= 22


async def test_answers_suffer_where_pictures_do_not_see_each_other(dense) -> None:
    assert await answers("E1,P1,D1", *ALMOST_NOTHING) != dense


async def test_ranks_in_processes_choose_too(dense) -> None:
    ranks = ("model.tensor_parallel=2", "model.parallel=processes")
    found = await answers("EPD1", *NEARLY_ALL, *ranks)
    assert sum(one == other for one, other in zip(found, dense, strict=True)) >= 22


def test_what_cannot_be() -> None:
    def refused(text: str, *settings: str) -> None:
        with pytest.raises(ConfigError, match=text):
            config("EPD1", *settings)

    refused(r"sparse\.selector: engine\.deterministic", *NEARLY_ALL, "engine.deterministic=true")
    refused(r"sparse\.tile: 48 is not one of", "sparse.tile=48")
    refused(r"sparse\.selector: 'best' is not one of none, xattention", "sparse.selector=best")
    refused(r"sparse\.tau", "sparse.tau=1.5")


async def test_one_role_alone_is_not_sparse() -> None:
    own = 'cluster.roles={P = ["sparse.selector=xattention"]}'
    with pytest.raises(ConfigError, match=r"cluster\.roles\.P: sparse\.selector is the same"):
        async with flow(config("E1,P1,D1", own)):
            pass


async def test_kv_is_known_by_another_fingerprint_than_dense_kv() -> None:
    """By what routers look beginnings up, and by what blocks and files are checked."""
    seen = []
    for settings in ((), NEARLY_ALL, ALMOST_NOTHING):
        async with flow(config("E1,P1,D1", *settings, model=str(DEMO))) as running:
            about = [each.description for each in running.core.dispatcher.view().instances]
            seen.append({one.model for one in about})
            assert {one.kv.model for one in about if one.kv is not None} == seen[-1]
    assert [len(models) for models in seen] == [1, 1, 1]
    assert len(set.union(*seen)) == 3


async def test_the_oracle_is_refused() -> None:
    with pytest.raises(ConfigError, match="the oracle has no attention"):
        async with flow(config("EPD1", "sparse.selector=xattention")):
            pass
