"""Packing and landing where something is converted: another wire format, another shape, or both.

    blocks --encode--> slots --a transport--> buffer --decode, repartition--> blocks

A giver has as many slots as it grants credits itself; a taker that grants more waits for them. A
taker that sees the giver's store needs no buffer: it converts out of the store, which is the only
copy. A piece in a slot is the encoded pieces of its blocks one behind the other; its places count
units of ``UNIT`` bytes of the slots.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from kvtransfer.landing import EqualLanding, Landing, Packing, RawPacking, Wanted
from kvtransfer.manifest import MAX_CHUNK_BLOCKS, RAW, Manifest
from kvtransfer.pieces import Piece, check_bounds, extents
from kvtransfer.repartition import Repartition
from kvtransfer.staging import Staging
from kvtransfer.transports.transport import Extent, Source, slices
from triptych.codec.formats import FORMATS, Format
from triptych.codec.grid import blocks_of
from triptych.codec.pieces import Pieces, PlainPieces
from triptych.core.config import TransferConfig
from triptych.core.errors import InvariantBroken, TransferError
from triptych.core.ids import BlockId
from triptych.core.layout import Layout
from triptych.core.ports import BlockMemory

UNIT = 4
"""Encoded pieces are a multiple of it."""


class EncodedPacking:
    """Pieces are encoded into slots. Implements ``landing.Packing``.

    Args:
        memory: the store that is offered.
        form: how to encode; it takes the store's layout.
        staging: where slots come from and go back to.
        num_slots: pieces that a taker may leave unread.
        message_bytes: what a piece of several blocks has at most before it is encoded.
    """

    def __init__(
        self,
        memory: BlockMemory,
        form: Format,
        staging: Staging,
        num_slots: int,
        message_bytes: int,
    ) -> None:
        self._layout = memory.layout
        self._blocks = memory.view
        self._form = form
        self._staging = staging
        self._slots = staging.take(_most_bytes(memory.layout, form, message_bytes), num_slots)
        self._free = deque(range(num_slots))
        self._unread: deque[int] = deque()
        self.wire = form.name
        self.num_slots = num_slots
        self.piece_bytes = message_bytes
        self.memory: BlockMemory = self._slots

    def pack(self, piece: Piece, blocks: Sequence[BlockId]) -> tuple[Sequence[int], list[Extent]]:
        """See ``landing.Packing``."""
        if not self._free:
            raise InvariantBroken("more pieces are unread than there are slots")
        slot = self._free.popleft()
        self._unread.append(slot)
        each = self._form.encoded_bytes(self._layout, piece.num_layers)
        span = Extent(slot * self._slots.layout.block_bytes, each * len(blocks))
        (data,) = slices(self._slots.view, [span])
        layers = range(piece.first_layer, piece.end_layer)
        self._form.encode(self._layout, self._blocks, blocks, data, layers)
        return range(span.offset // UNIT, (span.offset + span.length) // UNIT, each // UNIT), [span]

    def read(self) -> None:
        """See ``landing.Packing``."""
        self._free.append(self._unread.popleft())

    def close(self) -> None:
        """See ``landing.Packing``."""
        self._staging.give_back(self._slots)


class ConvertedLanding:
    """Numbers are decoded and moved to where they belong. Implements ``landing.Landing``.

    ``buffer`` gives memory of so many bytes, the same as before while that is large enough. Raises
    TransferError if what the manifest announces cannot become what is wanted.
    """

    def __init__(
        self, manifest: Manifest, wanted: Wanted, buffer: Callable[[int], memoryview]
    ) -> None:
        form, self._layout = FORMATS.get(manifest.wire), manifest.layout
        if form is None or not form.takes(self._layout):
            raise TransferError(f"manifest: the wire format {manifest.wire} is not known here")
        self._repartition = Repartition(self._layout, wanted.memory.layout)
        self._form = form
        self._store_bytes = manifest.store_bytes
        self._buffer = buffer
        self._wanted = wanted
        self._found: Callable[[], None] = _nothing

    def bring(self, piece: Piece, places: Sequence[int], source: Source) -> list[memoryview]:
        """See ``landing.Landing``."""
        spans = self._spans(piece, places)
        check_bounds(spans, self._store_bytes)
        store = source.view
        if store is None:
            parts = [self._buffer(sum(span.length for span in spans))]
            source.read(spans, parts)
        else:
            parts = slices(store, spans)
        if store is None or self._form is not FORMATS[RAW]:
            pieces = self._form.pieces(self._layout, parts[0], piece.num_layers)
            places = range(piece.num_blocks)
        else:
            whole = store[: len(store) // self._layout.block_bytes * self._layout.block_bytes]
            array = blocks_of(whole, self._layout)[:, :, piece.first_layer : piece.end_layer]
            pieces = PlainPieces(array, self._layout.dtype)
        self._found = partial(self._land, piece, pieces, places)
        return parts

    def settle(self) -> None:
        """See ``landing.Landing``."""
        self._found()

    def _land(self, piece: Piece, pieces: Pieces, places: Sequence[int]) -> None:
        memory, blocks, *tokens = self._wanted
        array = blocks_of(memory.view, memory.layout)[:, :, piece.first_layer : piece.end_layer]
        self._repartition.land(pieces, places, piece.first_block, array, blocks, range(*tokens))

    def _spans(self, piece: Piece, places: Sequence[int]) -> list[Extent]:
        """Where the bytes of ``piece`` are: in blocks, or in a slot one behind the other."""
        if self._form is FORMATS[RAW]:
            return extents(self._layout, places, piece)
        each = self._form.encoded_bytes(self._layout, piece.num_layers)
        behind = places[0] + len(places) * each // UNIT
        if tuple(places) != tuple(range(places[0], behind, each // UNIT)):
            raise TransferError("chunk: encoded pieces that do not follow each other")
        return [Extent(places[0] * UNIT, len(places) * each)]


def packing(memory: BlockMemory, wire: str, config: TransferConfig, staging: Staging) -> Packing:
    """How blocks of ``memory`` go to a taker that asks for ``wire``: so, or raw, which every taker
    can read."""
    form = FORMATS.get(wire, FORMATS[RAW])
    if form is FORMATS[RAW] or not form.takes(memory.layout):
        return RawPacking(memory)
    return EncodedPacking(memory, form, staging, config.credits, config.message_bytes)


def landing(manifest: Manifest, wanted: Wanted, buffer: Callable[[int], memoryview]) -> Landing:
    """How what a manifest announces gets into the wanted blocks; ``buffer`` as for
    ``ConvertedLanding``. Raises TransferError if that cannot be done."""
    if manifest.wire == RAW and manifest.layout == wanted.memory.layout:
        return EqualLanding(manifest, wanted)
    return ConvertedLanding(manifest, wanted, buffer)


def _most_bytes(layout: Layout, form: Format, message_bytes: int) -> int:
    """Bytes of the largest encoded piece: of one block, or as many as make up a message."""
    each = layout.block_bytes // layout.num_layers
    most = 0
    for num_layers in range(1, layout.num_layers + 1):
        num_blocks = max(1, min(MAX_CHUNK_BLOCKS, message_bytes // (each * num_layers)))
        most = max(most, num_blocks * form.encoded_bytes(layout, num_layers))
    return most


def _nothing() -> None:
    """Nothing was brought yet."""
