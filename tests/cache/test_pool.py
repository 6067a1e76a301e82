import pytest

from tests.machines import Counted, run
from triptych.cache.pool import BlockPool
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId

NUM_BLOCKS = 7


class PoolMachine(Counted):
    """A pool beside a dict from block to number of references."""

    operations = ("take", "take", "share", "drop", "drop", "misuse_a_free_block")

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.model: dict[int, int] = {}

    def take(self, choices):
        count = choices.below(NUM_BLOCKS + 2)
        if count > NUM_BLOCKS - len(self.model):
            with pytest.raises(InvariantBroken):
                self.pool.take(count)
            return
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        assert not set(taken) & self.model.keys()
        self.model.update(dict.fromkeys(taken, 1))

    def share(self, choices):
        if self.model:
            block = choices.of(sorted(self.model))
            self.pool.share((block,))
            self.model[block] += 1

    def drop(self, choices):
        if self.model:
            block = choices.of(sorted(self.model))
            self.pool.drop((block,))
            self.model[block] -= 1
            if not self.model[block]:
                del self.model[block]

    def misuse_a_free_block(self, choices):
        free = sorted(set(range(NUM_BLOCKS)) - self.model.keys())
        if free:
            block = BlockId(choices.of(free))
            for misuse in (self.pool.share, self.pool.drop):
                with pytest.raises(InvariantBroken):
                    misuse((block,))

    def agree(self):
        self.pool.check()
        assert self.pool.num_free == NUM_BLOCKS - len(self.model)
        counts = [self.pool.count(BlockId(block)) for block in range(NUM_BLOCKS)]
        assert counts == [self.model.get(block, 0) for block in range(NUM_BLOCKS)]


def test_pool_against_a_dict():
    run("pool", PoolMachine, examples=40)


def test_block_freed_last_is_given_first():
    pool = BlockPool(5)
    first, second = pool.take(2)
    pool.drop((second,))
    pool.drop((first,))
    assert pool.take(2) == [first, second]


def test_check_finds_a_block_on_the_free_list_twice():
    pool = BlockPool(3)
    pool._free.append(BlockId(0))
    with pytest.raises(InvariantBroken, match="disagree"):
        pool.check()


def test_empty_pool_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        BlockPool(0)
