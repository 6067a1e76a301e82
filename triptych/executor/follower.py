"""A process that computes one rank of a language model: ``python -m triptych.executor.follower``,
started by ``team`` with the number of its socket.

It loads its share of the layers, then computes what the leader tells it, step by step, until the
leader is gone. It keeps nothing of a sequence; tables, head, pictures and draws are the leader's.
"""

import os
import select
import socket
import sys
import threading
from pathlib import Path

import msgspec
import torch

from triptych.core.errors import ConfigError, InstanceLost
from triptych.core.layout import CODES
from triptych.core.plan import LanguagePlan
from triptych.executor.attention.sparse import sparse_of
from triptych.executor.batch import Batcher
from triptych.executor.block_store import DTYPES, BlockStore
from triptych.executor.device_ranks import DeviceRanks, meeting_of
from triptych.executor.models import config as model_config
from triptych.executor.models import registry
from triptych.executor.models.decoder import Layers
from triptych.executor.models.weights import Weights
from triptych.executor.operations import Needs, operations
from triptych.executor.orders import DONE, Copy, Orders, Ready, receive, send
from triptych.executor.ranks import ProcessRanks, Share


class Follower:
    """One rank: its share of the layers over the leader's store."""

    def __init__(self, orders: Orders) -> None:
        """Raises ConfigError that names the file or tensor that does not fit."""
        layout = orders.layout
        spec = registry.read_spec(model_config.read(Path(orders.path)))
        shard, device = orders.rank if orders.backend else None, orders.device
        self.memory = memory = BlockStore(
            layout, orders.num_blocks, device=device, fd=orders.store, shard=shard
        )
        """The KV store, or this rank's part of it."""
        self._device = torch.device(device)
        self._dtype = DTYPES[orders.dtype]
        self._width = spec.text.hidden_size
        share = Share(orders.rank, layout.num_shards)
        self._ranks = _ranks(share, orders)
        text = spec.text
        needs = Needs(
            device=device,
            dtype=orders.dtype,
            threads=orders.threads,
            text_head=text.head_dim,
            vision_head=spec.vision.hidden_size // spec.vision.num_heads,
            block_size=layout.block_size,
            kv_dtype=layout.dtype if layout.dtype in CODES else "auto",
        )
        made_of = operations(orders.kernels, needs, deterministic=orders.deterministic)
        with Weights(
            Path(orders.path), dtype=self._dtype, device=device, operations=made_of
        ) as weights:
            self._layers = Layers(spec.text, weights, memory, self._ranks)
        self.num_bytes = weights.num_bytes
        """Of its weights."""
        self._batcher = Batcher(
            made_of.planner(memory.resident, device, text.num_heads // text.num_kv_heads),
            merge_size=spec.vision.merge_size,
            embedding_block_size=None,
            device=device,
            sparse=sparse_of(orders.sparse),
        )

    def meet(self) -> None:
        """Wait for the other ranks. Raises InstanceLost if they do not come."""
        self._ranks.meet()

    @torch.inference_mode()
    def compute(self, plan: LanguagePlan) -> None:
        """This rank's part of a step. Raises InstanceLost if another rank is gone."""
        batch = self._batcher.make(plan)
        x = torch.empty(plan.num_tokens, self._width, dtype=self._dtype, device=self._device)
        self._ranks.spread(x)
        self._layers(x, batch.positions, batch.attention)


def _ranks(share: Share, orders: Orders) -> ProcessRanks | DeviceRanks:
    if orders.backend:
        return DeviceRanks(share, meeting_of(orders))
    peers = [socket.socket(fileno=number) for number in orders.peers]
    return ProcessRanks(share, orders.board, peers, orders.timeout_s)


def _serve_copies(number: int, memory: BlockStore) -> None:
    """Copy what the leader asks for, beside the steps, until it is gone. Who cannot copy is of no
    use: the process ends."""
    connection, decoder = socket.socket(fileno=number), msgspec.msgpack.Decoder(Copy)
    try:
        while True:
            copy = decoder.decode(receive(connection))
            if copy.is_up:
                memory.absorb(copy.blocks)
            else:
                memory.stage(copy.blocks, range(*copy.layers))
            connection.sendall(DONE)
    except (EOFError, OSError):
        return
    except RuntimeError:
        os._exit(1)


def main(number: int) -> int:
    """Follow until the leader is gone; 1 if the follower could not begin."""
    connection = socket.socket(fileno=number)
    threading.Thread(target=_end_with_leader, args=(number,), daemon=True).start()
    orders = msgspec.msgpack.decode(receive(connection), type=Orders)
    torch.set_num_threads(orders.threads)
    if torch.device(orders.device).type == "cuda":
        torch.cuda.set_device(orders.device)
    try:
        follower = Follower(orders)
    except ConfigError as error:
        send(connection, msgspec.msgpack.encode(Ready(error=str(error))))
        return 1
    if orders.backend:
        copies = orders.copies, follower.memory
        threading.Thread(target=_serve_copies, args=copies, daemon=True).start()
    send(connection, msgspec.msgpack.encode(Ready(follower.num_bytes)))
    decoder = msgspec.msgpack.Decoder(LanguagePlan)
    try:
        follower.meet()
        while True:
            follower.compute(decoder.decode(receive(connection)))
    except (EOFError, OSError):
        return 0
    except (RuntimeError, InstanceLost) as error:
        sys.exit(f"rank {orders.rank} ends: {error}")


def _end_with_leader(number: int) -> None:
    """End at once when the leader closed its end of the socket, or the kernel did for it, whatever
    is being computed or waited for. The kernel's signal at a parent's death is of no use here: it
    comes when the thread ends that started us."""
    poll = select.poll()
    poll.register(number, 0)
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
