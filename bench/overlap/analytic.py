"""What overlap is worth for Qwen2.5-VL-7B on H200s, computed from bytes and published rates.

Pure arithmetic, nothing measured here. A prompt is chunks; a chunk is layers; a piece of KV (one
chunk, one layer) may leave when it is written. A link carries one piece after the other.

    compute   | c0 l0 | c0 l1 | ... | c0 l27 | c1 l0 | ... | cN l27 |<- first token
    link              | c0 l0 | c0 l1 | ...                 | cN l27 |<- decode may begin
                                                            exposed: |-----|
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import msgspec

# The model: the published configuration of Qwen2.5-VL-7B-Instruct, bfloat16.
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP = 28, 3584, 28, 4, 128, 18_944
VOCABULARY = 152_064
VISION_LAYERS, VISION_HIDDEN, VISION_HEADS, VISION_MLP, VISION_FULL = 32, 1280, 16, 3420, 4
BYTES = 2
KV_BYTES = LAYERS * 2 * KV_HEADS * HEAD_DIM * BYTES
"""Of one token: 57,344."""
EMBEDDING_BYTES = HIDDEN * BYTES
"""Of one visual token: 7,168."""
PICTURE_TOKENS = 1024
PATCHES_PER_TOKEN = 4

# The machine: kernels measured on an H200 (aiconfigurator's tables, vLLM 0.24.0, bfloat16; peak
# 989 TFLOP/s dense), so that no utilisation is assumed where one was measured.
GEMM_FLOPS = ((256, 640e12), (512, 790e12), (1024, 790e12), (2048, 780e12), (4096, 730e12))
"""By rows: matrices of 3,584 columns and 3,584 to 51,200 rows, weighted by this model's shapes."""
VISION_GEMM_FLOPS = 660e12
"""4,096 rows, 1,024 to 1,536 columns (the table has no 1,280): 618 to 724 TFLOP/s."""
ATTENTION_FLOPS = ((1024, 230e12), (2048, 380e12), (4096, 475e12), (8192, 580e12), (16384, 640e12))
"""By context, causal, 24 to 32 heads of 128, 4 KV heads: FlashAttention 3."""
VISION_FULL_S, VISION_WINDOW_S = 0.183e-3, 0.0476e-3
"""Attention of a layer over 4,096 patches, 16 heads of 80: all together, or 64 windows of 64."""
MEMORY_BYTES_PER_S = 4.8e12
LINKS = {
    "NVLink 4 (450 GB/s)": 450e9,
    "PCIe 5 x16 (64 GB/s)": 64e9,
    "InfiniBand NDR (50 GB/s)": 50e9,
    "100 GbE (12.5 GB/s)": 12.5e9,
    "10 GbE (1.25 GB/s)": 1.25e9,
}
"""Published rates, one direction."""
MESSAGE_S = 10e-6
"""Beyond its bytes, a piece costs this on any link: an assumption, and a generous one for RDMA."""
CHUNK_TOKENS = 2048


class Handover(msgspec.Struct, frozen=True):
    """KV of one prompt on its way from prefill to decode. Seconds."""

    prefill_s: float
    transfer_s: float
    """The transfer alone: all pieces, one behind the other."""
    exposed_s: float
    """What is left of it when prefill has ended."""

    @property
    def hidden(self) -> float:
        """Share of the transfer that nobody waits for."""
        return 1.0 - self.exposed_s / self.transfer_s


def layer_s(tokens: int, context: int) -> float:
    """One decoder layer over ``tokens`` new tokens, the last of which sees ``context`` tokens."""
    weights = HIDDEN * (HEADS + 2 * KV_HEADS) * HEAD_DIM + HIDDEN**2 + 3 * HIDDEN * MLP
    gemm_s = 2 * tokens * weights / _rate(GEMM_FLOPS, tokens)
    gemm_s = max(gemm_s, BYTES * weights / MEMORY_BYTES_PER_S)
    seen = tokens * (context - tokens) + tokens * (tokens + 1) / 2
    attention_s = 4 * seen * HEADS * HEAD_DIM / _rate(ATTENTION_FLOPS, context)
    # Norms, rotation, gate and residuals: about ten passes over the stream, three over the MLP.
    traffic = tokens * BYTES * (10 * HIDDEN + 3 * MLP)
    return gemm_s + attention_s + traffic / MEMORY_BYTES_PER_S


def encode_s() -> float:
    """One picture of ``PICTURE_TOKENS`` through the vision tower and its merger."""
    patches = PICTURE_TOKENS * PATCHES_PER_TOKEN
    weights = 4 * VISION_HIDDEN**2 + 3 * VISION_HIDDEN * VISION_MLP
    merged = PATCHES_PER_TOKEN * VISION_HIDDEN
    flops = 2 * patches * weights * VISION_LAYERS
    flops += 2 * PICTURE_TOKENS * (merged**2 + merged * HIDDEN)
    attention_s = VISION_FULL * VISION_FULL_S + (VISION_LAYERS - VISION_FULL) * VISION_WINDOW_S
    traffic = patches * BYTES * (10 * VISION_HIDDEN + 3 * VISION_MLP) * VISION_LAYERS
    return flops / VISION_GEMM_FLOPS + attention_s + traffic / MEMORY_BYTES_PER_S


def chunks(tokens: int, size: int = CHUNK_TOKENS) -> list[tuple[int, int]]:
    """``(new tokens, context behind them)`` of every chunk."""
    borders = [*range(0, tokens, size), tokens]
    return [(end - begin, end) for begin, end in pairwise(borders)]


def prefill_s(tokens: int) -> float:
    """A whole prompt, the head's row for its last token included."""
    head_s = BYTES * VOCABULARY * HIDDEN / MEMORY_BYTES_PER_S
    return sum(LAYERS * layer_s(new, context) for new, context in chunks(tokens)) + head_s


def handover(tokens: int, bytes_per_s: float, way: str) -> Handover:
    """KV of ``tokens`` over a link; ``way``: it leaves ``after`` prefill, ``chunk`` by chunk or
    ``layer`` by layer."""
    ready_s, now_s = [], 0.0
    for new, context in chunks(tokens):
        for _ in range(LAYERS):
            now_s += layer_s(new, context)
            ready_s.append((now_s, new * KV_BYTES / LAYERS))
        if way != "layer":  # pieces of a chunk are one message
            ready_s[-LAYERS:] = [(now_s, new * KV_BYTES)]
    end_s = prefill_s(tokens)
    if way == "after":
        ready_s = [(end_s, tokens * KV_BYTES)]
    done_s = 0.0
    for at_s, size in ready_s:
        done_s = max(done_s, at_s) + MESSAGE_S + size / bytes_per_s
    alone_s = sum(MESSAGE_S + size / bytes_per_s for _, size in ready_s)
    return Handover(end_s, alone_s, max(done_s - end_s, 0.0))


def ttft_s(
    pictures: int, bytes_per_s: float, *, is_overlapped: bool, encoders: int = 1, text: int = 64
) -> float:
    """Time to the first token of ``pictures`` and a question behind them, queues empty.

    Pictures are encoded one after the other by each encoder and cross the link one after the
    other. With overlap a picture's chunk is computed when it is there and the one before it is
    done; without, nothing is computed before all are there.
    """
    arrivals_s, link_s = [], 0.0
    for index in range(pictures):
        encoded_s = (index // encoders + 1) * encode_s()
        size = PICTURE_TOKENS * EMBEDDING_BYTES
        link_s = max(link_s, encoded_s) + MESSAGE_S + size / bytes_per_s
        arrivals_s.append(link_s)
    now_s = 0.0 if is_overlapped else arrivals_s[-1]
    for index, at_s in enumerate(arrivals_s):
        context = (index + 1) * PICTURE_TOKENS
        now_s = max(now_s, at_s) + LAYERS * layer_s(PICTURE_TOKENS, context)
    head_s = BYTES * VOCABULARY * HIDDEN / MEMORY_BYTES_PER_S
    return now_s + LAYERS * layer_s(text, pictures * PICTURE_TOKENS + text) + head_s


def hidden_table(lengths: Sequence[int] = (1024, 4096, 16384)) -> str:
    """Markdown: the share of the KV transfer that is hidden, by link, length and way."""
    lines = [
        "| link | tokens | KV (MB) | prefill (ms) | transfer alone (ms) | hidden, by chunk |"
        " hidden, by layer | exposed, by layer (ms) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rate in LINKS.items():
        for tokens in lengths:
            chunk, layer = (handover(tokens, rate, way) for way in ("chunk", "layer"))
            alone_s = handover(tokens, rate, "after").transfer_s
            lines.append(
                f"| {name} | {tokens:,} | {tokens * KV_BYTES / 1e6:.0f} |"
                f" {layer.prefill_s * 1e3:.1f} | {alone_s * 1e3:.2f} |"
                f" {chunk.hidden:.1%} | {layer.hidden:.1%} |"
                f" {layer.exposed_s * 1e3:.2f} |"
            )
    return "\n".join(lines)


def ttft_table(counts: Sequence[int] = (1, 4, 8), link: str = "InfiniBand NDR (50 GB/s)") -> str:
    """Markdown: TTFT with and without encode/prefill overlap, by pictures and encoders."""
    lines = [
        "| pictures | encoders | TTFT without overlap (ms) | with overlap (ms) | saved |",
        "|---|---|---|---|---|",
    ]
    for pictures in counts:
        for encoders in (1, 2, 4):
            if encoders <= pictures:
                apart, together = (
                    ttft_s(pictures, LINKS[link], is_overlapped=word, encoders=encoders)
                    for word in (False, True)
                )
                lines.append(
                    f"| {pictures} | {encoders} | {apart * 1e3:.1f} | {together * 1e3:.1f} |"
                    f" {1 - together / apart:.0%} |"
                )
    return "\n".join(lines)


def _rate(table: Sequence[tuple[int, float]], at: int) -> float:
    """Between two measured points in proportion, beyond them the nearest."""
    place = bisect_left(table, at, key=lambda pair: pair[0])
    if place in (0, len(table)):
        return table[min(place, len(table) - 1)][1]
    (low, slow), (high, fast) = table[place - 1 : place + 1]
    return slow + (fast - slow) * (at - low) / (high - low)
