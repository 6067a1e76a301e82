"""What a simulated cluster is made of: a card of costs for each role, and wires.

Values only; ``simulator.host`` makes instances of them.
"""

import msgspec

from simulator.costs.card import Card
from simulator.costs.devices import LINKS, LinkRate
from simulator.costs.overheads import Overheads
from simulator.interference import Colocated
from triptych.core.layout import Layout
from triptych.core.lifecycle import Role, Stage


class Hardware(msgspec.Struct, frozen=True):
    """The machines of a scenario."""

    model: str
    cards: dict[str, Card]
    """By name of a role (``E``, ``PD``, ...); ``""`` for all others."""
    near: LinkRate = LINKS["nvlink-h200"]
    """Between GPUs of one node."""
    far: LinkRate = LINKS["rdma-400g"]
    """Between nodes, a port for each GPU."""
    per_node: int = 8
    decode_s: float = 0.004
    """To decode and resize a picture of a million pixels on one core of a host."""
    picture_pixels: int = 0
    """Pixels of every picture before it is resized; 0: as the workload says. For models whose
    tokens do not follow from the pixels."""
    start_s: float = 30.0
    """Cold start of an instance: weights, graphs."""
    load_s: float = 10.0
    """To start in another role where a healthy instance was, with weights that it had not (encode
    has the vision model's, prefill and decode the language model's)."""
    switch_s: float = 0.7
    """The same with weights that it had: EPDServe (ICML 2025, section 3.2.4) measured less."""
    colocated: tuple[Colocated, ...] = ()
    """Places that share GPUs."""
    contention: float = 1.0
    """By how much a step of pictures takes longer while sequences are computed on the same GPUs,
    and the other way round: 1 if they take turns, less if two streams overlap."""
    kv_layers: int = 16
    """Parts of a block of KV that may be sent by themselves: runs of a model's layers."""
    layer_groups: int = 4
    """Times in a chunk at which its finished layers are told of; a real executor tells of each."""
    hop_s: float = 0.0
    """Of a message between router and instance, one way, the work at both ends included."""
    overheads: Overheads | None = None
    """What surrounds the steps, where a profile measured it; the times above but for ``start_s``
    are then in it."""
    has_shared_cores: bool = False
    """Whether all processes, the client included, compute on the cores of one machine, as fast as
    ``overheads.speeds``; else each has a device and a core of its own."""

    def card(self, role: str) -> Card:
        """What an instance of that role runs on."""
        return self.cards.get(role) or self.cards[""]

    def ready_s(self, role: Role, before: Role | None) -> float:
        """Until an instance serves, where one of role ``before`` ended in peace, or none (None)."""
        if before is None:
            return self.start_s
        return self.switch_s if _weights(role) <= _weights(before) else self.load_s

    def num_gpus(self, role: str) -> int:
        """GPUs of such an instance."""
        return self.card(role).sizes.num_devices


def _weights(role: Role) -> set[bool]:
    """Whether the vision model's and whether the language model's."""
    return {stage is Stage.ENCODE for stage in role}


def kv_layout(card: Card, model: str, block_size: int, num_layers: int) -> Layout:
    """Blocks of as many bytes as an instance's KV has, all devices together. Which rank holds which
    head is not modelled."""
    row = card.sizes.kv_token_bytes // num_layers
    return Layout("kv", model, "uint8", (num_layers, 1, block_size, 1, row), block_size)


def embedding_layout(card: Card, model: str, block_size: int) -> Layout:
    """Blocks of as many bytes as visual tokens have."""
    shape = (block_size, card.sizes.visual_token_bytes)
    return Layout("embedding", model, "uint8", shape, block_size)
