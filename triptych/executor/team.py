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
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path

import msgspec
from torch import Tensor

from triptych.core.errors import ConfigError, InstanceLost, Unavailable
from triptych.core.plan import LanguagePlan
from triptych.executor.block_store import BlockStore
from triptych.executor.orders import Orders, Ready, bare, receive, send
from triptych.executor.ranks import ProcessRanks, Share, make_board

_ROOT = Path(__file__).resolve().parents[2]


class Team:
    """Rank 0 of ``memory.layout.num_shards``, and the processes of the others.

    The KV store is one memory that all have mapped, each writing its own runs of a block: whoever
    reads ``memory.view`` here sees what every rank wrote. ``orders`` are every follower's but for
    its rank and its descriptors, which are filled in here. ``start_s`` is how long they may take to
    be ready. Raises Unavailable if a process cannot be started.
    """

    def __init__(self, orders: Orders, memory: BlockStore, start_s: float) -> None:
        num_ranks = orders.layout.num_shards
        self._start_s = start_s
        self._followers: list[_Follower] = []
        self._is_over = False
        try:
            ends = _mesh(num_ranks)
            self._board = make_board(num_ranks)
        except OSError as error:
            raise Unavailable(f"ranks cannot meet: {error}") from error
        self._ranks = ProcessRanks(Share(0, num_ranks), self._board, ends[0], orders.timeout_s)
        self.shares: tuple[Share, ...] = self._ranks.shares
        """Of the rank that this process computes."""
        try:
            for rank in range(1, num_ranks):
                peers = tuple(end.fileno() for end in ends[rank])
                own = msgspec.structs.replace(
                    orders, rank=rank, store=memory.fd, board=self._board, peers=peers
                )
                follower = _Follower(own, start_s)
                self._followers.append(follower)
                follower.begin()
        except OSError as error:
            self.close()
            raise Unavailable(f"a follower cannot be started: {error}") from error
        finally:
            for end in chain.from_iterable(ends[1:]):
                end.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of the followers."""
        return tuple(follower.pid for follower in self._followers)

    def ready(self) -> int:
        """Wait until all ranks have their weights; bytes of the followers'. Raises ConfigError or
        Unavailable."""
        return sum(follower.ready() for follower in self._followers)

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """See ``ProcessRanks.total``."""
        return self._ranks.total(summands)

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
            self._ranks.spread(x)
            yield
        except Exception as error:
            self.close()
            raise InstanceLost(f"ranks fell apart: {error}") from error

    def close(self) -> None:
        """End the followers. Idempotent."""
        if not self._is_over:
            self._is_over = True
            for follower in self._followers:
                follower.end()
            self._ranks.close()
            os.close(self._board)


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
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
        threads = str(orders.threads)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "triptych.executor.follower", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads},
                pass_fds=(theirs.fileno(), orders.store, orders.board, *orders.peers),
            )
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
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
        return word.num_bytes

    def tell(self, data: bytes) -> None:
        """A step begins."""
        try:
            send(self._connection, data)
        except OSError as error:
            raise InstanceLost(f"{self._name} is gone") from error

    def end(self) -> None:
        """Kill and reap: it holds nothing that anybody would miss."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
