"""Groups of whole models: decode, prefill and encode, through the classes that serve."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cli.gpu import work
from cli.gpu.dummy import DummyWeights, Language
from cli.gpu.groups import CannotFit, Case, Group, Measure
from cli.gpu.kit import Setup
from cli.gpu.rows import Found
from cli.gpu.sizes import Picture, Sizes, told
from triptych.executor.models.vision import VisionTower

DECODE, COMPUTE = 0.8, 0.6
"""Targets: of the bandwidth's floor; of the matrix product's rate."""
_RESERVE_BYTES = 9 << 30
"""For activations, frames and logits beside weights and KV."""


def decode_name(batch: int, context: int) -> str:
    """Of a row, here and of a peer."""
    return f"decode {batch} x {told(context)}"


def prefill_name(tokens: int) -> str:
    """Of a row, here and of a peer."""
    return f"prefill {told(tokens)}"


def groups(sizes: Sizes) -> list[Group]:
    """In the order of their weight."""
    decodes = [Case(decode_name(*one), one, 5.0) for one in sizes.decodes]
    prefills = [
        Case(prefill_name(tokens), tokens, 6.0 + 3e-4 * tokens) for tokens in sizes.prefills
    ]
    pictures = [Case(_picture_name(one, sizes), one, 4.0) for one in sizes.pictures]
    return [
        Group("decode", decodes, decode),
        Group("prefill", prefills, prefill),
        Group("encode", pictures, encode),
    ]


def _picture_name(one: Picture, sizes: Sizes) -> str:
    side = sizes.spec.vision.patch_size
    return f"encode {one.number} of {side * one.columns}x{side * one.rows}"


def kv_room(setup: Setup) -> float:
    """Bytes that the device has for KV beside the decoder."""
    if setup.device.type != "cuda":
        return float("inf")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(setup.device)
    return free - work.language_bytes(setup.sizes.spec.text, setup.item) - _RESERVE_BYTES


@contextmanager
def decode(setup: Setup) -> Iterator[Measure]:
    """A decoder over the largest store that any case needs and the device has."""
    sizes, text = setup.sizes, setup.sizes.spec.text
    room = kv_room(setup)
    block_bytes = sizes.block_size * work.kv_bytes(text, setup.item)
    needs = {one: one[0] * -(-one[1] // sizes.block_size) for one in sizes.decodes}
    fits = {one: count for one, count in needs.items() if count * block_bytes <= room}
    language: Language | None = None
    if fits:
        language = _language(setup, max(fits.values()))

    def measure(one: tuple[int, int]) -> Found:
        if language is None or one not in fits:
            need = needs[one] * block_bytes / 2**30
            raise CannotFit(f"{need:.3g} GiB of KV, room for {max(room, 0) / 2**30:.3g}")
        plan, switch = language.decodes(*one), setup.kit.switch
        beside: dict[str, float | str] = {}
        step: Callable[[], object] = lambda: language.decoder.logits(plan)  # noqa: E731
        note = "not captured" if switch is None else ""
        measured = setup.timer(step, is_step=True)
        if switch is not None:
            switch.is_on = False
            try:
                beside["not captured"] = setup.timer(step, is_step=True).median
            finally:
                switch.is_on = True
        phases = work.decode(text, *one, setup.item)
        return Found(measured, phases, DECODE, beside=beside, note=note)

    yield measure


@contextmanager
def prefill(setup: Setup) -> Iterator[Measure]:
    """A decoder over a store for the longest prompt."""
    sizes = setup.sizes
    language = _language(setup, -(-max(sizes.prefills) // sizes.block_size))

    def measure(tokens: int) -> Found:
        chunks = language.chunks(tokens, sizes.chunk)

        def steps() -> None:
            for chunk in chunks:
                language.decoder.logits(chunk)

        # The last chunk compiles what the others need, and a long prompt is not computed twice.
        measured = setup.timer(
            steps, is_step=True, warm=lambda: language.decoder.logits(chunks[-1])
        )
        phases = work.prefill(sizes.spec.text, tokens, sizes.chunk, setup.item)
        return Found(
            measured, phases, COMPUTE, note=f"{len(chunks)} steps" if len(chunks) > 1 else ""
        )

    yield measure


def _language(setup: Setup, num_blocks: int) -> Language:
    weights = DummyWeights(setup.dtype, setup.device, setup.kit.operations)
    return Language(
        setup.sizes.spec, weights, block_size=setup.sizes.block_size, num_blocks=num_blocks
    )


@contextmanager
def encode(setup: Setup) -> Iterator[Measure]:
    """A vision tower; patches lie on the device."""
    spec = setup.sizes.spec.vision
    tower = VisionTower(spec, DummyWeights(setup.dtype, setup.device, setup.kit.operations))

    def measure(one: Picture) -> Found:
        patches = setup.normal(one.number * one.rows * one.columns, spec.patch_values)
        grids = [(1, one.rows, one.columns)] * one.number
        measured = setup.timer(lambda: tower(patches, grids), is_step=True)
        return Found(measured, work.encode(spec, one, setup.item), COMPUTE)

    yield measure
