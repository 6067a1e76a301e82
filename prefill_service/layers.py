"""Layer-wise offering: KV leaves while later layers of the same step are computed.

What is called between layers runs on the executor's thread, or on that of a device's copies, and
shares nothing with the service but the offers, which any thread may tell. Knows layers and bytes;
no jobs, no engine.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from kvtransfer.offer import Offer
from triptych.core.ids import BlockId
from triptych.core.ports import BlockMemory

OnLayers = Callable[[int], None]


class Stretch(NamedTuple):
    """Blocks of one offer that a step in flight fills."""

    offer: Offer
    blocks: tuple[BlockId, ...]


def announce(stretches: Sequence[Stretch], memory: BlockMemory, message_bytes: int) -> OnLayers:
    """A function of the number of layers that are written: it offers those of each stretch that
    are not offered yet, once together they make a message of ``message_bytes``, or are the last.
    """
    num_layers = memory.layout.num_layers
    layer_bytes = memory.layout.block_bytes // num_layers
    offered = [0] * len(stretches)

    def on_layers(count: int) -> None:
        for index, (offer, blocks) in enumerate(stretches):
            size = len(blocks) * layer_bytes * (count - offered[index])
            if size >= message_bytes or count == num_layers:
                layers, offered[index] = range(offered[index], count), count
                memory.stage(blocks, layers, partial(offer.append, blocks, count))

    return on_layers
