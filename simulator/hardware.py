"""What a simulated cluster is made of: models by their sizes, GPUs by their costs, wires by rates.

Values only; ``simulator.host`` makes instances of them.
"""

import msgspec

from scheduler.costs import Costs
from simulator.links import Link
from triptych.core.layout import Layout

NVLINK = Link("nvlink", 5e-6, 400e9)
"""Within a node of H200s: 900 GB/s both ways, 450 GB/s each (NVIDIA's data sheet), less overhead.
"""
RDMA_400 = Link("rdma-400g", 1e-5, 45e9)
"""One 400 Gb/s port a GPU, nine tenths of its rate."""
ETHERNET_100 = Link("tcp-100g", 1e-4, 8e9)


class ModelSizes(msgspec.Struct, frozen=True):
    """What decides how many bytes a model's KV and embeddings have."""

    name: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    embedding_width: int
    """Numbers of a visual token's embedding."""
    dtype: str = "bfloat16"

    def kv_layout(self, model: str, block_size: int, num_shards: int) -> Layout:
        """Blocks of the KV cache of an instance of ``num_shards`` tensor-parallel ranks."""
        heads = max(1, self.num_kv_heads // num_shards)
        shape = (self.num_layers, 2, block_size, heads, self.head_dim)
        return Layout("kv", model, self.dtype, shape, block_size, num_shards)

    def embedding_layout(self, model: str, block_size: int) -> Layout:
        """Blocks of the embedding cache."""
        shape = (block_size, self.embedding_width)
        return Layout("embedding", model, self.dtype, shape, block_size)


QWEN25_VL_7B = ModelSizes("qwen2.5-vl-7b", 28, 4, 128, 3584)


class Gpus(msgspec.Struct, frozen=True):
    """What one instance of a role runs on."""

    costs: Costs
    """Of all its GPUs together."""
    count: int = 1
    """GPUs of an instance: its tensor-parallel degree."""


class Hardware(msgspec.Struct, frozen=True):
    """The machines of a scenario."""

    sizes: ModelSizes
    gpus: dict[str, Gpus]
    """By name of a role (``E``, ``PD``, ...); ``""`` for all others."""
    near: Link = NVLINK
    far: Link = RDMA_400
    per_node: int = 8
    decode_s: float = 0.005
    """To decode and resize one picture on a host core; ``decode_workers`` at a time."""
    start_s: float = 0.0
    """Cold start of an instance: weights, graphs."""

    def of(self, role: str) -> Gpus:
        """GPUs of an instance of that role."""
        found = self.gpus.get(role) or self.gpus.get("")
        if found is None:
            raise KeyError(role)
        return found
