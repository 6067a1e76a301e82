import random

import pytest

from tests.executor.driver import Driver, executors, scene
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId, JobId
from triptych.core.plan import Draw, LanguagePlan, PlacedItem, Segment
from triptych.core.request import Sampling
from triptych.executor.build import Executors


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
