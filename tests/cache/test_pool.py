import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from triptych.cache.pool import BlockPool
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId

NUM_BLOCKS = 7


class PoolMachine(RuleBasedStateMachine):
    """A pool beside a dict from block to number of references."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.model: dict[int, int] = {}

    @rule(count=st.integers(0, NUM_BLOCKS + 1))
    def take(self, count):
        if count > NUM_BLOCKS - len(self.model):
            with pytest.raises(InvariantBroken):
                self.pool.take(count)
            return
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        assert not set(taken) & self.model.keys()
        self.model.update(dict.fromkeys(taken, 1))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def share(self, data):
        block = data.draw(st.sampled_from(sorted(self.model)))
        self.pool.share((block,))
        self.model[block] += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop(self, data):
        block = data.draw(st.sampled_from(sorted(self.model)))
        self.pool.drop((block,))
        self.model[block] -= 1
        if not self.model[block]:
            del self.model[block]

    @precondition(lambda self: len(self.model) < NUM_BLOCKS)
    @rule(data=st.data())
    def misuse_a_free_block(self, data):
        free = data.draw(st.sampled_from(sorted(set(range(NUM_BLOCKS)) - self.model.keys())))
        for misuse in (self.pool.share, self.pool.drop):
            with pytest.raises(InvariantBroken):
                misuse((BlockId(free),))

    @invariant()
    def agrees(self):
        self.pool.check()
        assert self.pool.num_free == NUM_BLOCKS - len(self.model)
        counts = [self.pool.count(BlockId(block)) for block in range(NUM_BLOCKS)]
        assert counts == [self.model.get(block, 0) for block in range(NUM_BLOCKS)]


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase


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
