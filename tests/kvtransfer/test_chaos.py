"""Many transfers at once, cancelled, withdrawn, failed and slowed at random, with memory that is
given to the next owner in the very moment in which it is said to be free."""

import asyncio
import random

import msgspec
import pytest

from tests.kvtransfer.stores import CALM, Store, pair
from tests.patience import PATIENCE_S
from triptych.core.errors import TransferError, TriptychError
from triptych.core.ids import Handle

pytestmark = pytest.mark.usefixtures("no_leak")


class Blocks:
    """A free list whose blocks are overwritten as they come back, and checked as they go out."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._rng = random.Random(seed)
        self._free = list(range(store.num_blocks))
        self._size = store.layout.block_bytes
        for block in self._free:
            self._scrub(block)

    def _scrub(self, block: int) -> None:
        self._store.block(block)[:] = b"\xee" * self._size

    def take(self, count: int) -> list[int]:
        self._rng.shuffle(self._free)
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            assert self._store.block(block) == b"\xee" * self._size, "somebody wrote into it"
        return taken

    def give(self, blocks: list[int]) -> None:
        for block in blocks:
            self._scrub(block)
        self._free.extend(blocks)

    def __len__(self) -> int:
        return len(self._free)


class Chaos:
    def __init__(self, both, seed: int) -> None:
        self.both = both
        self.rng = random.Random(seed)
        self.theirs = Blocks(both.source, seed)
        self.ours = Blocks(both.target, seed + 1)
        self.counts: dict[str, int] = {}

    async def produce(self, handle: str, blocks: list[int], released: list[str]) -> None:
        """Like an engine: write blocks, append them, and lose interest now and then."""

        def on_release(reason: str) -> None:
            released.append(reason)
            self.theirs.give(blocks)

        rng, store = self.rng, self.both.source
        await asyncio.sleep(rng.random() * 0.01)
        offer = self.both.outbox.offer(Handle(handle), 0, store, handle, on_release)
        for block in blocks:
            if released:
                return  # the blocks are the next one's
            store.block(block)[:] = random.Random(f"{handle}{blocks.index(block)}").randbytes(
                store.layout.block_bytes
            )
            offer.append([block])
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.005)
        fate = rng.random()
        if fate < 0.1:
            offer.fail("unavailable", "chaos")
        elif fate < 0.2:
            await self.both.outbox.withdraw(Handle(handle))
            assert released
        else:
            offer.finish(handle.encode())
            if fate < 0.3:
                await asyncio.sleep(rng.random() * 0.002)
                await self.both.outbox.withdraw(Handle(handle))
                assert released

    async def consume(self, handle: str, count: int) -> None:
        mine = self.ours.take(count)
        task = asyncio.create_task(self.both.fetch(count, mine, handle=handle))
        if self.rng.random() < 0.25:
            asyncio.get_running_loop().call_later(self.rng.random() * 0.03, task.cancel)
        outcome = "taken"
        try:
            assert await task == handle.encode()
            for index, block in enumerate(mine):
                expected = random.Random(f"{handle}{index}").randbytes(
                    self.both.target.layout.block_bytes
                )
                assert self.both.target.block(block) == expected, "another's bytes, with status OK"
        except asyncio.CancelledError:
            outcome = "cancelled"
        except TransferError:
            outcome = "data_loss"
        except TriptychError as error:
            outcome = error.code
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        self.ours.give(mine)

    async def one(self, handle: str) -> None:
        count = self.rng.randint(1, 6)
        blocks, released = self.theirs.take(count), []
        await asyncio.gather(self.produce(handle, blocks, released), self.consume(handle, count))
        async with asyncio.timeout(PATIENCE_S):
            while not released:
                await self.both.outbox.withdraw(Handle(handle))
        assert len(released) == 1


@pytest.mark.parametrize("digest", [True, False], ids=["digest", "bare"])
@pytest.mark.parametrize("way", ["inproc", "shm", "tcp"])
async def test_never_another_ones_bytes(way, digest):
    config = msgspec.structs.replace(CALM, digest=digest)
    async with pair(way, config, source=Store(100), target=Store(100)) as both:
        chaos = Chaos(both, seed=5)
        for round_ in range(12):
            await asyncio.gather(*(chaos.one(f"{round_}.{number}") for number in range(12)))
        await both.assert_idle()
        assert len(chaos.theirs) == len(chaos.ours) == 100
        assert sum(chaos.counts.values()) == 144
        assert chaos.counts["taken"] > 50, chaos.counts
        assert chaos.counts["cancelled"] > 10, chaos.counts
