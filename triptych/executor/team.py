"""The leader of a language model whose ranks are processes: starts its followers, tells them of
each step, and ends them. What a follower does is in ``follower``.

Knows processes and sockets; no layers. A team that lost one is over: its methods raise InstanceLost
from then on, and whoever hosts the instance makes a new one.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Protocol

import msgspec
from torch import Tensor

from triptych.core.errors import ConfigError, InstanceLost, Unavailable
from triptych.core.plan import LanguagePlan
from triptych.executor.block_store import BlockStore
from triptych.executor.device_ranks import DeviceRanks, device_of, meeting_of
from triptych.executor.orders import DONE, Copy, Orders, Ready, bare, receive, send
from triptych.executor.ranks import ProcessRanks, Share, make_board

_ROOT = Path(__file__).resolve().parents[2]


class Team:
    """Rank 0 of ``memory.layout.num_shards``, and the processes of the others.

    The KV store's ``view`` is one memory that all have mapped: each rank writes its own runs of a
    block there, or, with ``orders.backend``, to memory of its own, and copies them when it is asked
    to (``TeamStore``). ``orders`` are every follower's but for its rank and its descriptors, which
    are filled in here. ``start_s`` is how long they may take to be ready. Raises Unavailable if a
    process cannot be started.
    """

    is_alone = False
    """See ``Ranks``."""

    def __init__(self, orders: Orders, memory: BlockStore, start_s: float) -> None:
        num_ranks = orders.layout.num_shards
        self._followers: list[_Follower] = []
        self._is_over = False
        self._copying, self._closing = threading.Lock(), threading.Lock()
        orders = msgspec.structs.replace(orders, store=memory.fd, start_s=start_s)
        try:
            self._joint = _Group(orders) if orders.backend else _Board(orders)
        except OSError as error:
            raise Unavailable(f"ranks cannot meet: {error}") from error
        self._ranks: _Sharers | None = None
        self.shares: tuple[Share, ...] = (Share(0, num_ranks),)
        """Of the rank that this process computes."""
        try:
            for rank in range(1, num_ranks):
                follower = _Follower(self._joint.orders_of(rank), start_s)
                self._followers.append(follower)
                follower.begin()
        except OSError as error:
            self.close()
            raise Unavailable(f"a follower cannot be started: {error}") from error
        finally:
            self._joint.let_go()

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of the followers."""
        return tuple(follower.pid for follower in self._followers)

    def ready(self) -> int:
        """Wait until all ranks have their weights and have met; bytes of the followers'. Raises
        ConfigError or Unavailable."""
        num_bytes = sum(follower.ready() for follower in self._followers)
        self._ranks = self._joint.join()
        return num_bytes

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """See ``Sharers``."""
        return self._met().total(summands)

    @contextlib.contextmanager
    def step(self, plan: LanguagePlan, x: Tensor) -> Iterator[None]:
        """Around the layers of a step whose rows are ``x`` (tokens, hidden). If anything fails in
        it, ranks may stand at different places and never meet again: the team is over, nobody
        writes to the store any more, and InstanceLost is raised."""
        try:
            if self._is_over:
                raise InstanceLost("its followers were ended")
            data = msgspec.msgpack.encode(bare(plan))
            for follower in self._followers:
                follower.tell(data)
            self._met().spread(x)
            yield
        except Exception as error:
            self.close()
            raise InstanceLost(f"ranks fell apart: {error}") from error

    def copy(self, copy: Copy) -> None:
        """Have every follower copy its runs, and wait for it. Any thread. Raises InstanceLost: the
        team is over then, as a late answer would be taken for the next one's."""
        data = msgspec.msgpack.encode(copy)
        with self._copying:
            try:
                if self._is_over:
                    raise InstanceLost("its followers were ended")
                for follower in self._followers:
                    follower.ask(data)
                for follower in self._followers:
                    follower.answered()
            except InstanceLost:
                self.close()
                raise

    def close(self) -> None:
        """End the followers, and whatever waits for them. Idempotent; any thread."""
        with self._closing:
            if self._is_over:
                return
            self._is_over = True
        for follower in self._followers:
            follower.end()
        if self._ranks is not None:
            self._ranks.close()
        self._joint.close()

    def _met(self) -> "_Sharers":
        if self._ranks is None:
            raise InstanceLost("the ranks have not met")
        return self._ranks


class TeamStore(BlockStore):
    """Rank 0's store where ranks have memory of their own: what is staged and absorbed here is
    there too, by ``others``, which the team gives."""

    others: Callable[[Copy], None]

    def stage(
        self,
        blocks: Sequence[int],
        layers: range | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """See ``core.ports.BlockMemory``. The others are asked when our own copy is there: what has
        been computed here, was computed there, as every layer ends with a sum over all."""
        whole = range(self.layout.num_layers) if layers is None else layers
        copy = Copy(False, tuple(blocks), (whole.start, whole.stop))
        if then is None:
            super().stage(blocks, layers)
            self.others(copy)
            return

        def behind() -> None:
            self.others(copy)
            then()

        super().stage(blocks, layers, behind)

    def absorb(self, blocks: Sequence[int]) -> None:
        """See ``core.ports.BlockMemory``."""
        super().absorb(blocks)
        self.others(Copy(True, tuple(blocks)))


class _Sharers(Protocol):
    """Our own rank among the others."""

    def spread(self, x: Tensor) -> None: ...

    def total(self, summands: Sequence[Tensor]) -> Tensor: ...

    def close(self) -> None: ...


class _Board:
    """Ranks that share the host's memory. Raises OSError."""

    def __init__(self, orders: Orders) -> None:
        num_ranks = orders.layout.num_shards
        self._orders = orders
        self._ends = _mesh(num_ranks)
        self._board = make_board(num_ranks)
        share = Share(0, num_ranks)
        self._ranks = ProcessRanks(share, self._board, self._ends[0], orders.timeout_s)

    def orders_of(self, rank: int) -> Orders:
        """A follower's."""
        peers = tuple(end.fileno() for end in self._ends[rank])
        return msgspec.structs.replace(self._orders, rank=rank, board=self._board, peers=peers)

    def let_go(self) -> None:
        """All followers that could be started have what is theirs."""
        for end in chain.from_iterable(self._ends[1:]):
            end.close()

    def join(self) -> _Sharers:
        """Our own rank."""
        return self._ranks

    def close(self) -> None:
        """Give everything back."""
        self._ranks.close()
        os.close(self._board)


class _Group:
    """Ranks with memory of their own. Raises OSError."""

    def __init__(self, orders: Orders) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="triptych-ranks-")
        meeting = str(Path(self._folder.name) / "meeting")
        self._orders = msgspec.structs.replace(orders, meeting=meeting)

    def orders_of(self, rank: int) -> Orders:
        """A follower's."""
        device = device_of(self._orders.device, rank)
        return msgspec.structs.replace(self._orders, rank=rank, device=device)

    def let_go(self) -> None:
        """Nothing is theirs alone."""

    def join(self) -> _Sharers:
        """Our own rank, once all are there. Raises Unavailable. Nobody needs the file any more."""
        ranks = DeviceRanks(Share(0, self._orders.layout.num_shards), meeting_of(self._orders))
        try:
            ranks.meet()
        except InstanceLost as error:
            raise Unavailable(str(error)) from error
        finally:
            self._folder.cleanup()
        return ranks

    def close(self) -> None:
        """Give everything back."""
        self._folder.cleanup()


def _mesh(num_ranks: int) -> list[list[socket.socket]]:
    """For each rank its ends of sockets to all others."""
    ends: list[list[socket.socket]] = [[] for _ in range(num_ranks)]
    with contextlib.ExitStack() as failing:
        for one, other in combinations(range(num_ranks), 2):
            for rank, end in zip((one, other), socket.socketpair(), strict=True):
                ends[rank].append(failing.enter_context(end))
        failing.pop_all()
    return ends


class _Follower:
    """One process, which dies with this one or at its word."""

    def __init__(self, orders: Orders, start_s: float) -> None:
        self._orders = orders
        self._start_s = start_s
        self._name = f"rank {orders.rank}"
        self._connection, theirs = socket.socketpair()
        self._copies, their_copies = socket.socketpair()
        self._orders = orders = msgspec.structs.replace(orders, copies=their_copies.fileno())
        passed = [theirs.fileno(), orders.copies, orders.store, *orders.peers]
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
        threads = str(orders.threads)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "triptych.executor.follower", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads},
                pass_fds=[*passed, *([orders.board] if orders.board >= 0 else [])],
            )
        except BaseException:
            self._connection.close()
            self._copies.close()
            raise
        finally:
            theirs.close()
            their_copies.close()
        self.pid = self._process.pid

    def begin(self) -> None:
        """Tell it what it is. Raises OSError."""
        self._connection.settimeout(self._start_s)
        send(self._connection, msgspec.msgpack.encode(self._orders))

    def ready(self) -> int:
        """Wait for its word that its weights are loaded; their bytes."""
        try:
            word = msgspec.msgpack.decode(receive(self._connection), type=Ready)
        except TimeoutError as error:
            late = f"{self._name} is not ready after {self._start_s:g} s"
            raise Unavailable(late) from error
        except (OSError, EOFError) as error:
            raise Unavailable(f"{self._name} ended while it started") from error
        if word.error:
            raise ConfigError(f"{word.error} ({self._name})")
        self._connection.settimeout(self._orders.timeout_s)
        self._copies.settimeout(self._orders.timeout_s)
        return word.num_bytes

    def tell(self, data: bytes) -> None:
        """A step begins."""
        try:
            send(self._connection, data)
        except OSError as error:
            raise InstanceLost(f"{self._name} is gone") from error

    def ask(self, data: bytes) -> None:
        """For a copy."""
        try:
            send(self._copies, data)
        except OSError as error:
            raise InstanceLost(f"{self._name} is gone") from error

    def answered(self) -> None:
        """Wait until what was asked for is done."""
        try:
            if self._copies.recv(1) == DONE:
                return
        except OSError as error:
            raise InstanceLost(f"{self._name} is gone or silent") from error
        raise InstanceLost(f"{self._name} is gone")

    def end(self) -> None:
        """Kill and reap: it holds nothing that anybody would miss."""
        self._connection.close()
        self._copies.close()
        self._process.kill()
        self._process.wait()
