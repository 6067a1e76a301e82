import random

import pytest
from torch import Tensor

from tests.executor.driver import Driver, executors, scene
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId, JobId
from triptych.core.plan import Draw, LanguagePlan, PlacedItem, Segment
from triptych.core.request import Sampling
from triptych.executor.build import Executors

CASES = [("oracle", 1), ("oracle", 2), ("demo", 1), ("wide", 4)]


def test_results_are_in_the_plans_order(whole: Executors):
    """The batch is sorted inside; segments with and without a draw come back as they were."""
    driver = Driver(whole)
    sequences = [driver.add(scene(random.Random(n), [n], 690)) for n in (40, 3, 90, 17, 1)]
    wanted = [Driver(whole, seed=9).generate(Driver(whole, seed=9).add(each.scene), 999, 2)
              for each in sequences]  # fmt: skip
    driver.step(*((each, 20) for each in sequences))
    assert [len(each.drawn) for each in sequences] == [0, 1, 0, 1, 1]
    while any(len(each.drawn) < 2 for each in sequences):
        driver.step(*((each, 20) for each in sequences if len(each.drawn) < 2))
    assert [[drawn.token for drawn in each.drawn] for each in sequences] == wanted


def test_an_empty_plan_is_nothing(whole: Executors):
    assert whole.language.execute(LanguagePlan(())).drawn == ()


@pytest.mark.parametrize(("path", "num_ranks"), CASES)
def test_a_layer_is_written_when_it_is_announced_and_changes_no_more(folders, path, num_ranks):
    """Nor is a later one begun: what is announced too early would show as well."""
    made = executors(folders.get(path, path), num_ranks=num_ranks)
    driver = Driver(made)
    pieces = ([40, (2, 3), 30], [17], [50])
    sequences = [driver.add(scene(random.Random(n), each, 257)) for n, each in enumerate(pieces)]
    driver.step(*((each, 15) for each in sequences))
    segments = tuple(
        each.segment(count) for each, count in zip(sequences, (33, 1, 99), strict=True)
    )
    written = [list(segment.blocks[segment.start // 16 :]) for segment in segments]
    seen: list[tuple[int, list[Tensor]]] = []

    def stores() -> list[Tensor]:
        return [driver.runs[blocks] for blocks in written]

    before = stores()
    quiet = made.language.execute(LanguagePlan(segments)).drawn
    final = stores()
    for blocks, old in zip(written, before, strict=True):
        driver.runs[blocks] = old
    loud = made.language.execute(LanguagePlan(segments), lambda n: seen.append((n, stores()))).drawn
    assert loud == quiet
    assert [num_layers for num_layers, _ in seen] == list(range(1, final[0].shape[2] + 1))
    for num_layers, then in seen:
        for store, old, new in zip(then, before, final, strict=True):
            assert store[:, :, :num_layers].equal(new[:, :, :num_layers])
            assert store[:, :, num_layers:].equal(old[:, :, num_layers:])
            assert not new[:, :, num_layers - 1].equal(old[:, :, num_layers - 1])
    made.close()


@pytest.mark.parametrize(("path", "num_ranks"), CASES)
def test_two_chunks_of_one_sequence_in_one_step(folders, path, num_ranks):
    made = executors(folders.get(path, path), num_ranks=num_ranks)
    driver = Driver(made)
    one = scene(random.Random(3), [20, (3, 3), 30], 257)
    wanted = driver.generate(driver.add(one), 99, 3)
    sequence = driver.add(one)
    first = sequence.segment(23)
    sequence.advance(first, None)
    second = sequence.segment(99)
    result = made.language.execute(LanguagePlan((first, second)))
    assert result.drawn[0] is None
    sequence.advance(second, result.drawn[1])
    assert driver.generate(sequence, 1, 3) == wanted
    made.close()


@pytest.mark.parametrize("path", ["oracle", "demo"])
@pytest.mark.parametrize("wrong", ["table", "block", "token", "item"])
def test_what_is_not_there_is_a_bug(folders, path: str, wrong: str):
    made = executors(folders.get(path, path))
    item = scene(random.Random(1), [3, (2, 5)], 257).prompt.items[0]
    tokens, blocks, items = tuple(range(13)), [BlockId(3)], ()
    if wrong == "table":
        tokens = (*tokens, 1, 1, 1, 1)
    elif wrong == "block":
        blocks = [BlockId(10_000)]
    elif wrong == "token":
        tokens = (5_000_000_000, *tokens[1:])
    else:
        items = (PlacedItem(item, (BlockId(1),)),)
    draw = Draw(Sampling(), len(tokens), len(tokens))
    segment = Segment(JobId("x"), 0, tokens, tuple(blocks), items, draw)
    with pytest.raises(InvariantBroken):
        made.language.execute(LanguagePlan((segment,)))
    made.close()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=4, logprobs=2,
                                                           repetition_penalty=1.2)])  # fmt: skip
def test_a_run_draws_what_single_steps_draw(sampling, folders):
    """Two sequences, seven steps in a row, interrupted behind the fourth; then two of two."""
    found = []
    for is_run in (True, False):
        driver = Driver(executors(folders["qwen2_5_vl"]))
        language, rng = driver.executors.language, random.Random(5)
        sequences = [driver.add(scene(rng, [size], 690), sampling) for size in (11, 20)]
        for sequence in sequences:
            driver.step((sequence, 10**6))
        if is_run:
            told = []

            def on_drawn(drawn, seconds, told=told, language=language):
                assert seconds > 0
                told.append(tuple(drawn))
                if len(told) == 3:
                    language.interrupt()

            for steps, count in ((7, 4), (2, 2)):
                told.clear()
                ahead = [sequence.segment(1, steps) for sequence in sequences]
                result = language.execute(LanguagePlan(tuple(ahead), steps), None, on_drawn)
                told.append(result.drawn)
                assert len(told) == count
                for drawn in told:
                    for sequence, one in zip(sequences, drawn, strict=True):
                        sequence.advance(sequence.segment(1), one)
        else:
            for _ in range(6):
                driver.step(*((sequence, 1) for sequence in sequences))
        found.append(([one.drawn for one in sequences], [driver.kv(one) for one in sequences]))
        driver.executors.close()
    assert found[0][0] == found[1][0]
    assert all(a.equal(b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_nobody_is_told_of_a_run_of_one_step(folders):
    """Without a listener a run is its first step; blocks must be there for all of it."""
    driver = Driver(executors(folders["qwen2_5_vl"]))
    sequence = driver.add(scene(random.Random(1), [14], 690))
    driver.step((sequence, 10**6))
    language, segment = driver.executors.language, sequence.segment(1)
    assert len(language.execute(LanguagePlan((segment,), 2)).drawn) == 1
    with pytest.raises(InvariantBroken, match="does not cover"):
        language.execute(LanguagePlan((segment,), 20), None, lambda *_: None)
    driver.executors.close()
