"""What the state machine cannot say in a word: each promise of the engine by itself."""

import pytest

from tests.engine.bench import Bench
from tests.engine.scripted import (
    expected,
    kv_of,
    make_job,
    next_token,
    picture,
    publishing,
)
from tests.engine.test_language_machine import promise
from triptych.core.census import Census
from triptych.core.errors import InvariantBroken, Overloaded, RequestError
from triptych.core.handoff import FirstToken
from triptych.core.ids import InstanceId
from triptych.core.plan import LanguageResult
from triptych.core.request import Sampling
from triptych.engine.outcome import Advanced, Drew, Dropped, Ended, Reserved, Starved
from triptych.engine.policies import Beside


def test_prefill_decode_and_rest():
    bench = Bench()
    job = make_job("a", range(20), max_tokens=3)
    bench.engine.submit(job, 0.0)
    assert [len(bench.step()) for _ in range(4)] == [2, 1, 1, 1]
    assert bench.spans("a") == [(0, 8), (8, 16), (16, 20), (20, 21), (21, 22)]
    assert bench.tokens("a") == expected(job)
    assert [said.token.index for said in bench.of(Drew)] == [0, 1, 2]
    (ended,) = bench.of(Ended)
    assert ended.reason == "length"
    assert ended.timing.compute_s == 4 * 0.25
    assert bench.engine.is_idle
    held, totals = bench.engine.census()
    assert Census(InstanceId("x"), tuple(held), totals).is_idle


def test_what_it_is_to_pictures_on_the_same_device():
    bench = Bench(max_sequences=3)
    assert bench.engine.beside().is_idle
    for name, length, bound_s in (("a", 5, 0.1), ("b", 3, 0.05), ("c", 30, 0.01), ("d", 9, None)):
        bench.engine.submit(make_job(name, range(length), slo_tpot_s=bound_s), 0.0)
    bench.step()
    bench.step()
    # Two decode behind 6 and 4 tokens, one has chunks left; one waits for a place.
    assert bench.engine.beside() == Beside(2, 10, 0.05, 1)
    bench.run()
    bench.engine.submit(make_job("e", range(8), items=(picture("p", 0, 3),)), 0.0)
    bench.step()
    assert bench.engine.beside().is_idle  # it waits for its picture


def test_chunks_are_the_same_under_any_load():
    items = (picture("p", 3, 9), picture("q", 12, 2))
    job = make_job("a", range(23), items=items, max_tokens=1)
    spans = []
    for num_neighbours in (0, 1, 5):
        bench = Bench(token_budget=9, chunk_tokens=8)
        for index in range(num_neighbours):
            tokens = range(100 * index + 100, 100 * index + 115)
            bench.engine.submit(make_job(f"n{index}", tokens, max_tokens=9), 0.0)
        bench.engine.submit(job, 0.0)
        for index, item in enumerate(items):
            blocks = (10 * index, 10 * index + 1, 10 * index + 2, 10 * index + 3, 10 * index + 4)
            bench.executor.write_rows(item, blocks)
            bench.engine.item_ready("a", index, blocks)
        bench.run()
        assert bench.tokens("a") == expected(job)
        spans.append(bench.spans("a"))
    assert (
        spans[0] == spans[1] == spans[2] == [(0, 3), (3, 8), (8, 12), (12, 14), (14, 16), (16, 23)]
    )


def test_items_gate_only_their_own_chunks():
    bench = Bench()
    items = (picture("p", 5, 3), picture("q", 11, 4))
    job = make_job("a", range(18), items=items, max_tokens=1)
    bench.engine.submit(job, 0.0)
    bench.run()
    assert bench.spans("a") == [(0, 5)]
    bench.executor.write_rows(items[1], (8, 9))
    bench.engine.item_ready("a", 1, (8, 9))
    bench.run()
    assert bench.spans("a") == [(0, 5)]
    bench.now = 2.0
    bench.executor.write_rows(items[0], (4, 5))
    bench.engine.item_ready("a", 0, (4, 5))
    bench.run()
    assert bench.spans("a") == [(0, 5), (5, 8), (8, 11), (11, 15), (15, 16), (16, 18)]
    assert bench.tokens("a") == expected(job)
    assert bench.of(Ended)[0].timing.transfer_s == 2.0


def test_without_overlap_nothing_is_computed_before_all_items_are_here():
    bench = Bench(overlap=False)
    items = (picture("p", 5, 3), picture("q", 11, 4))
    job = make_job("a", range(18), items=items, max_tokens=3)
    bench.engine.submit(job, 0.0)
    for index, blocks in enumerate([(4, 5), (8, 9)]):
        bench.run()
        assert bench.spans("a") == []
        bench.now += 2.0
        bench.executor.write_rows(items[index], blocks)
        bench.engine.item_ready("a", index, blocks)
    bench.run()
    spans = [(0, 5), (5, 8), (8, 11), (11, 15), (15, 16), (16, 18), (18, 19), (19, 20)]
    assert bench.spans("a") == spans
    assert bench.tokens("a") == expected(job)
    assert bench.of(Ended)[0].timing.transfer_s == 4.0


def test_without_overlap_items_that_a_hit_covers_are_not_waited_for():
    bench = Bench(overlap=False)
    items = (picture("p", 2, 3), picture("q", 11, 4))
    first = make_job("a", range(8), items=items[:1], max_tokens=1)
    job = make_job("b", range(18), items=items, max_tokens=1)
    bench.engine.submit(first, 0.0)
    bench.executor.write_rows(items[0], (4, 5))
    bench.engine.item_ready("a", 0, (4, 5))
    bench.run()
    bench.engine.submit(job, 0.0)
    bench.run()
    assert bench.spans("b") == []
    bench.executor.write_rows(items[1], (8, 9))
    bench.engine.item_ready("b", 1, (8, 9))
    bench.run()
    assert bench.spans("b")[0][0] == 8
    assert bench.tokens("b") == expected(job)


def test_publishing_job_tells_its_progress_and_keeps_its_blocks():
    bench = Bench()
    job = publishing("a", range(18), max_tokens=4)
    bench.engine.submit(job, 0.0)
    bench.run()
    (reserved,) = bench.of(Reserved)
    assert len(reserved.blocks) == 5
    assert [said.computed for said in bench.of(Advanced)] == [8, 16, 18]
    assert bench.tokens("a") == expected(job)[:1]
    assert bench.of(Ended)[0].reason == "prefilled"
    assert not bench.engine.is_idle
    assert bench.engine.census()[1]["kv_block.cached"] == 0
    bench.engine.release("a")
    bench.engine.release("a")
    assert bench.engine.is_idle
    assert bench.engine.census()[1]["kv_block.cached"] == 4


def test_inbound_job_fetches_behind_its_hit_and_continues():
    bench = Bench(recomputes_items=False)
    earlier = make_job("e", range(12), max_tokens=1)
    bench.engine.submit(earlier, 0.0)
    bench.run()
    job = make_job("a", range(18), kv=promise(), max_tokens=4)
    bench.engine.submit(job, 1.0)
    bench.now = 1.0
    bench.step()
    reserved = bench.of(Reserved, "a")[0]
    assert reserved.hit_tokens == 12
    assert len(reserved.blocks) == 5
    bench.executor.write_kv(job, list(range(18)), reserved.blocks, 12, 18)
    bench.engine.arrived("a", 16)
    assert bench.step() == ()
    first = next_token(kv_of(job, list(range(18))))
    bench.engine.arrived_all("a", FirstToken(first))
    bench.now = 3.5
    bench.run()
    assert [first, *bench.tokens("a")] == expected(job)
    assert [said.token.index for said in bench.of(Drew, "a")] == [1, 2, 3]
    timing = bench.of(Ended, "a")[0].timing
    assert (timing.queue_s, timing.transfer_s, timing.cached_tokens) == (0.0, 2.5, 12)


def test_inbound_hit_may_cover_the_whole_prompt():
    bench = Bench()
    bench.engine.submit(make_job("e", range(16), max_tokens=1), 0.0)
    bench.run()
    bench.engine.submit(make_job("a", range(16), kv=promise()), 0.0)
    bench.step()
    (reserved,) = bench.of(Reserved, "a")
    assert reserved.hit_tokens == 16
    assert len(reserved.blocks) == 5


def test_arrived_kv_is_not_findable_before_it_is_verified():
    bench = Bench()
    job = make_job("a", range(16), kv=promise())
    bench.engine.submit(job, 0.0)
    bench.step()
    bench.engine.arrived("a", 16)
    bench.engine.fail("a", "data_loss", "digest")
    bench.step()
    assert bench.of(Dropped)[0].code == "data_loss"
    assert bench.engine.census()[1]["kv_block.free"] < 64
    bench.engine.release("a")
    assert bench.engine.census()[1] == {
        "kv_block.total": 64,
        "kv_block.free": 64,
        "kv_block.cached": 0,
    }


def test_first_token_that_ends_the_sequence_is_not_told_again():
    bench = Bench()
    job = make_job("a", range(6), kv=promise(), max_tokens=1)
    bench.engine.submit(job, 0.0)
    bench.step()
    assert len(bench.of(Reserved)[0].blocks) == 2
    bench.engine.arrived_all("a", FirstToken(5))
    bench.run()
    assert bench.of(Drew) == []
    assert bench.of(Ended)[0].reason == "length"
    assert bench.engine.is_idle


def test_inbound_job_that_fills_the_pool_exactly_is_admitted():
    bench = Bench(num_blocks=2)
    bench.engine.submit(make_job("a", range(8), kv=promise(), max_tokens=1), 0.0)
    bench.step()
    assert len(bench.of(Reserved)[0].blocks) == 2


def test_earlier_output_counts_and_is_recomputed():
    job = make_job("a", range(10), max_tokens=6)
    right = expected(job)
    bench = Bench()
    resumed = make_job("a", range(10), max_tokens=6, generated=right[:4])
    bench.engine.submit(resumed, 0.0)
    bench.run()
    assert bench.tokens("a") == right[4:]
    assert [said.token.index for said in bench.of(Drew)] == [4, 5]
    assert bench.spans("a") == [(0, 8), (8, 10), (10, 14), (14, 15)]


def test_job_that_was_complete_already_ends_at_once():
    bench = Bench()
    bench.engine.submit(make_job("a", range(5), max_tokens=2, generated=(1, 2)), 0.0)
    bench.engine.submit(make_job("b", range(5), max_tokens=9, generated=(1,), stop=(1,)), 0.0)
    bench.run()
    assert [said.reason for said in bench.of(Ended)] == ["length", "stop"]
    assert bench.executor.plans == []


def test_next_turn_finds_prompt_and_output():
    bench = Bench()
    job = make_job("a", range(10), max_tokens=8)
    bench.engine.submit(job, 0.0)
    bench.run()
    turn = [*range(10), *expected(job), 60, 61]
    again = make_job("b", turn, max_tokens=2)
    bench.engine.submit(again, 0.0)
    bench.run()
    assert bench.of(Ended, "b")[0].timing.cached_tokens == 16
    assert bench.tokens("b") == expected(again)


def test_deterministic_hits_end_at_chunks_and_output_is_not_kept():
    bench = Bench(deterministic=True)
    job = make_job("a", range(14), max_tokens=12)
    bench.engine.submit(job, 0.0)
    bench.run()
    turn = [*range(14), *expected(job), 60]
    bench.engine.submit(make_job("b", turn, max_tokens=1), 0.0)
    bench.run()
    assert bench.of(Ended, "b")[0].timing.cached_tokens == 8
    assert bench.spans("b") == [(8, 16), (16, 24), (24, 27)]


def test_oldest_decode_gets_on_when_blocks_run_out():
    bench = Bench(num_blocks=8, prefix=False)
    jobs = [make_job(name, range(9), max_tokens=20) for name in "abc"]
    for job in jobs:
        bench.engine.submit(job, 0.0)
    bench.run()
    assert bench.engine.load().preemptions > 0
    assert [said.job for said in bench.of(Ended)] == ["a", "b", "c"]
    for job in jobs:
        assert bench.tokens(job.header.id) == expected(job)


def test_what_cannot_be_recomputed_is_given_back():
    bench = Bench(num_blocks=8, recomputes_items=False)
    item = picture("p", 2, 3)
    bench.engine.submit(make_job("a", range(9), max_tokens=20), 0.0)
    job = make_job("b", range(10), items=(item,), kv=promise(), max_tokens=20)
    bench.engine.submit(job, 0.0)
    bench.step()
    known = list(range(10))
    bench.executor.write_kv(job, known, bench.of(Reserved, "b")[0].blocks, 0, 10)
    bench.engine.arrived_all("b", FirstToken(next_token(kv_of(job, known))))
    bench.run()
    (dropped,) = bench.of(Dropped)
    assert (dropped.job, dropped.code) == ("b", "preempted")
    assert bench.of(Ended)[0].job == "a"
    assert bench.engine.is_idle


def test_cancel_of_a_running_step_frees_only_after_it():
    bench = Bench()
    bench.engine.submit(make_job("a", range(9)), 0.0)
    bench.engine.submit(make_job("b", range(9)), 0.0)
    step = bench.engine.plan(0.0)
    assert not bench.engine.cancel("a")
    assert {holding.owner for holding in bench.engine.census()[0]} == {"a", "b"}
    bench.said += bench.engine.apply(step, bench.executor.execute(step.plan), 0.0)
    assert bench.of(Dropped) == [Dropped("a", "cancelled", "")]
    assert {holding.owner for holding in bench.engine.census()[0]} == {"b"}
    assert bench.engine.cancel("b")
    assert bench.engine.cancel("b")
    assert bench.engine.cancel("unknown")
    assert bench.engine.is_idle
    assert bench.engine.poll() == [Dropped("b", "cancelled", "")]


def test_failed_step_fails_its_jobs_and_no_others():
    bench = Bench(token_budget=8, max_sequences=3)
    for name in "abc":
        bench.engine.submit(make_job(name, range(8), max_tokens=2), 0.0)
    step = bench.engine.plan(0.0)
    assert step.jobs == {"a"}
    assert bench.engine.execution_failed(step)[0].code == "internal"
    bench.run()
    assert [said.job for said in bench.of(Ended)] == ["b", "c"]
    assert bench.engine.is_idle


def test_late_jobs_are_dropped_before_they_are_computed():
    bench = Bench()
    bench.engine.submit(make_job("a", range(9), budget_s=2.0), 1.0)
    bench.engine.submit(publishing("b", range(9), budget_s=9.0), 1.0)
    assert bench.engine.next_deadline() == 3.0
    bench.now = 3.0
    bench.step()
    assert bench.of(Dropped) == [Dropped("a", "deadline_exceeded", "")]
    assert bench.spans("a") == []
    bench.now = 10.0
    bench.step()
    assert bench.of(Dropped, "b") == []  # it was done before; its lease has no deadline here
    assert bench.engine.next_deadline() is None


def test_big_job_at_the_head_is_not_overtaken():
    bench = Bench(num_blocks=12, prefix=False, max_sequences=8)
    bench.engine.submit(make_job("first", range(8), max_tokens=12), 0.0)
    bench.step()
    bench.engine.submit(make_job("big", range(40), max_tokens=2), 0.0)
    for index in range(6):
        bench.engine.submit(make_job(f"small{index}", range(4), max_tokens=2), 0.0)
    bench.run()
    order = [said.job for said in bench.of(Reserved)]
    assert order[:2] == ["first", "big"]


@pytest.mark.parametrize("order", ["fcfs", "longest_prefix"])
def test_prompts_without_room_are_told_of_and_may_go_first(order):
    bench = Bench(num_blocks=6, patience_s=2.0, order=order)
    for name, length in (("1", 22), ("2", 23), ("3", 10), ("4", 11)):
        tokens = range(100) if name == "2" else range(int(name) * 100, 1000)
        bench.engine.submit(publishing(name, tokens[:length]), 0.0)
    bench.run()
    for bench.now, until_s in ((1.9, 2.0), (2.0, 4.0)):
        assert bench.step() == ()
        assert bench.engine.next_deadline() == until_s
    assert bench.of(Starved) == [Starved(("2", "3", "4"))]
    bench.engine.prefer(["4"])
    bench.engine.release("1")
    bench.run()
    assert [said.job for said in bench.of(Reserved)] == ["1", "4"]
    assert bench.engine.next_deadline() == 4.0, "of 2, from now on"
    bench.engine.release("4")
    bench.run()
    bench.engine.release("2")
    bench.run()
    assert [said.job for said in bench.of(Ended)] == ["1", "4", "2", "3"]
    bench.engine.release("3")
    assert bench.engine.is_idle


def test_prefill_is_passed_over_only_so_often():
    bench = Bench(token_budget=8, chunk_tokens=8, max_sequences=8)
    for index in range(3):
        bench.engine.submit(make_job(f"d{index}", [index], max_tokens=40), 0.0)
    for _ in range(2):
        bench.step()
    bench.engine.submit(make_job("p", range(100, 116), max_tokens=1), 0.0)
    steps = 0
    while not bench.of(Ended, "p"):
        bench.step()
        steps += 1
    assert steps <= 12
    assert len(bench.of(Ended)) == 1


def test_lone_sequence_that_can_never_grow_ends_with_an_error():
    """Submission refuses what cannot fit; this is the net below it."""
    bench = Bench(num_blocks=4, prefix=False)
    bench.engine.submit(make_job("a", range(8), max_tokens=8), 0.0)
    bench.step()
    bench.cache._pool.take(bench.cache._pool.num_free)  # blocks lost to a bug
    while not bench.of(Dropped):
        step = bench.engine.plan(0.0)
        bench.said += step.outcomes
        if step.jobs:
            bench.said += bench.engine.apply(step, bench.executor.execute(step.plan), 0.0)
    assert bench.of(Dropped)[0].code == "internal"
    assert bench.engine.is_idle


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (make_job("a", []), "prompt"),
        (make_job("a", range(9), max_tokens=0), "max_tokens"),
        (make_job("a", range(9), max_tokens=992), "max_tokens"),
        (make_job("a", range(9), max_tokens=300), "max_tokens"),
        (publishing("a", range(9), kv=promise()), "publish"),
        (make_job("a", range(9), items=[picture("p", 5, 3), picture("q", 7, 1)]), "items"),
        (make_job("a", range(9), items=[picture("p", 7, 3)]), "items"),
        (make_job("a", range(9), items=[picture("p", 7, 0)]), "items"),
    ],
)
def test_impossible_jobs_are_refused_and_leave_nothing(job, field):
    bench = Bench()
    with pytest.raises(RequestError) as refusal:
        bench.engine.submit(job, 0.0)
    assert refusal.value.field == field
    assert bench.engine.is_idle


def test_pictures_need_an_instance_with_embeddings():
    bench = Bench(recomputes_items=False)
    with pytest.raises(RequestError, match="pictures"):
        bench.engine.submit(make_job("a", range(9), items=[picture("p", 1, 3)]), 0.0)


def test_too_many_waiting_jobs_are_refused():
    bench = Bench(max_sequences=2, max_waiting=1)
    for index in range(3):
        bench.engine.submit(make_job(f"{index}", range(5)), 0.0)
    with pytest.raises(Overloaded):
        bench.engine.submit(make_job("4", range(5)), 0.0)
    bench.engine.submit(make_job("1", range(5)), 0.0)
    assert bench.engine.load().waiting == 3


def test_history_travels_only_where_it_is_needed():
    bench = Bench()
    plain = make_job("a", range(5), max_tokens=2)
    penal = make_job("b", range(5), max_tokens=2, sampling=Sampling(presence_penalty=0.5))
    for job in (plain, penal):
        bench.engine.submit(job, 0.0)
    bench.run()
    draws = {}
    for plan in bench.executor.plans:
        for segment in plan.segments:
            draws.setdefault(segment.job, []).append(segment.draw)
    assert [draw.history for draw in draws["a"]] == [(), ()]
    assert [draw.history for draw in draws["b"]] == [
        tuple(range(5)),
        (*range(5), bench.tokens("b")[0]),
    ]
    assert [draw.position for draw in draws["b"]] == [5, 6]


def test_result_of_another_shape_changes_nothing():
    bench = Bench()
    bench.engine.submit(make_job("a", range(5)), 0.0)
    step = bench.engine.plan(0.0)
    with pytest.raises(InvariantBroken):
        bench.engine.plan(0.0)
    for drawn in ((), (None,), (None, None)):
        with pytest.raises(InvariantBroken):
            bench.engine.apply(step, LanguageResult(drawn, 0.0), 0.0)
    bench.said += bench.engine.apply(step, bench.executor.execute(step.plan), 0.0)
    bench.run()
    assert bench.of(Ended)[0].job == "a"
