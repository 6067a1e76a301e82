"""Bytes of a model on a device: weights, KV, embeddings, and the blocks that fit.

Knows shapes and devices; no pool and no seconds.
"""

import msgspec

from simulator.costs.devices import Device
from simulator.costs.shapes import BYTES, Shape

USED = 0.9
"""Of a device's memory, weights and caches together: what vLLM's default leaves for activations."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Of one instance: ``num_devices`` that share the decoder and each hold the whole encoder."""

    num_devices: int
    device_bytes: int
    language_bytes: int
    """Weights of the decoder, all devices together."""
    vision_bytes: int
    """Weights of the encoder on each device."""
    kv_token_bytes: int
    """Keys and values of one token, all layers, all devices together."""
    visual_token_bytes: int
    """Embedding of one visual token, on the way to the decoder."""

    def weight_bytes(self, vision: bool, language: bool) -> int:
        """On all devices, of the stages that the instance has."""
        encoder = self.num_devices * self.vision_bytes if vision else 0
        return encoder + (self.language_bytes if language else 0)

    def spare_bytes(self, vision: bool, language: bool, used: float = USED) -> int:
        """For caches, beside the weights; not below 0."""
        total = int(used * self.device_bytes) * self.num_devices
        return max(0, total - self.weight_bytes(vision, language))

    def num_kv_blocks(self, block_tokens: int, vision: bool = False, used: float = USED) -> int:
        """Blocks of KV in what is spare."""
        return self.spare_bytes(vision, True, used) // (block_tokens * self.kv_token_bytes)


def sizes(shape: Shape, device: Device, tp: int, weight_number_bytes: int = BYTES) -> Sizes:
    """Of ``shape`` over ``tp`` devices. Key-value heads that are fewer than devices are copied."""
    language, vision = shape.language, shape.vision
    copies = max(1, tp // language.kv_heads)
    return Sizes(
        num_devices=tp,
        device_bytes=device.memory_bytes,
        language_bytes=language.parameters * weight_number_bytes,
        vision_bytes=vision.parameters * BYTES if vision else 0,
        kv_token_bytes=language.kv_token_bytes() * copies,
        visual_token_bytes=language.hidden * BYTES,
    )
