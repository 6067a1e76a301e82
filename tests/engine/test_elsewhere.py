"""Prefixes that come from elsewhere: awaited, built on as far as they came, or cancelled."""

import pytest

from tests.engine.bench import Bench
from tests.engine.scripted import (
    expected,
    make_job,
    picture,
    publishing,
)
from triptych.core.errors import InvariantBroken
from triptych.engine.outcome import Ended, Reserved


@pytest.mark.parametrize("brought", [12, 8, 0])
def test_a_prefix_from_elsewhere_is_awaited_and_the_rest_computed(brought):
    bench = Bench(elsewhere=lambda _job, _table: 15)
    tokens = list(range(20))
    job = publishing("a", tokens)
    bench.engine.submit(job, 0.0)
    bench.step()
    (reserved,) = bench.of(Reserved)
    assert (reserved.hit_tokens, reserved.awaited_tokens) == (0, 12)
    assert bench.step() == ()
    bench.executor.write_kv(job, tokens, reserved.blocks, 0, brought)
    bench.engine.prefix_arrived("a", brought)
    bench.run()
    assert bench.spans("a")[0][0] == brought
    assert bench.tokens("a") == expected(job)[:1]
    assert bench.of(Ended)[0].timing.cached_tokens == brought
    bench.engine.release("a")
    assert bench.engine.is_idle


@pytest.mark.parametrize("brought", [16, 12, 4, 0])
def test_deterministic_builds_on_whole_chunks_of_what_came(brought):
    bench = Bench(
        elsewhere=lambda _job, _table: 16, deterministic=True, chunk_tokens=8, token_budget=16
    )
    tokens = list(range(21))
    job = publishing("a", tokens)
    bench.engine.submit(job, 0.0)
    bench.step()
    (reserved,) = bench.of(Reserved)
    bench.executor.write_kv(job, tokens, reserved.blocks, 0, brought)
    assert bench.engine.prefix_arrived("a", brought) == brought // 8 * 8
    bench.run()
    assert bench.spans("a")[0][0] == brought // 8 * 8
    assert bench.tokens("a") == expected(job)[:1]
    bench.engine.release("a")


def test_nothing_gets_blocks_before_its_pictures_have_places():
    """Who has places and waits for blocks would wait for who has blocks and waits for places."""
    bench = Bench()
    job = make_job("a", range(20), items=(picture("p", 5, 3),))
    bench.engine.submit(job, 0.0, has_places=False)
    bench.engine.submit(make_job("b", range(9)), 0.0)
    bench.step()
    assert [one.job for one in bench.of(Reserved)] == ["b"], "it is overtaken"
    bench.engine.places_ready("a")
    bench.step()
    assert [one.job for one in bench.of(Reserved)] == ["b", "a"]
    bench.engine.cancel("a")
    bench.engine.cancel("b")


def test_a_job_that_awaits_a_prefix_can_be_cancelled_and_is_never_preempted():
    bench = Bench(elsewhere=lambda _job, _table: 8)
    bench.engine.submit(make_job("a", range(20)), 0.0)
    bench.step()
    bench.engine.fail("a", "internal", "")
    bench.step()
    assert not bench.engine.is_idle, "somebody may still write into its blocks"
    bench.engine.release("a")
    bench.engine.check()
    assert bench.engine.is_idle
    with pytest.raises(InvariantBroken):
        bench.engine.submit(make_job("b", range(3)), 0.0)
        bench.step()
        bench.engine.prefix_arrived("b", 0)
