"""The configuration of block-sparse attention: who chooses, and by which measure.

Knows keys and what they mean for the numbers of a model; not how tiles are chosen.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.core.config_kinds import Amount, Count, Share
from triptych.core.hashing import digest

NONE = "none"
TILES = (16, 32, 64, 128)


class SparseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prefill of long visual prompts that reads a part of the keys: lossy, see docs/sparse.md. The
    same for all instances, as they share what is computed."""

    selector: str = "none"
    """What chooses, for each tile of a picture's rows, the tiles of keys it reads: ``xattention``,
    ``block_filter``, ``vertical_slash``, ``modality`` or ``local_and_history``; ``none``: all are
    read. Rows of text always read all."""
    min_tokens: Count = 8192
    """Shorter contexts are dense."""
    tile: Annotated[int, Meta(ge=16, le=128)] = 128
    """Rows and keys of a tile, a power of two. A chunk (``engine.chunk_tokens``) is best a multiple
    of it."""
    tau: Share = 0.9
    """Of ``xattention`` and ``block_filter``: the share of the estimated weight to be kept."""
    columns: Amount = 64
    """Of ``vertical_slash`` and ``modality``: how many columns of keys every row reads."""
    diagonals: Amount = 256
    """Of the same: how many diagonals."""
    local_tokens: Count = 2048
    """Of ``local_and_history``: tokens of a run, which is dense in itself."""
    history: Annotated[float, Meta(ge=0, le=1)] = 0.25
    """Of the same: the share of the tiles before its run that a tile of rows reads."""

    def model(self, fingerprint: str) -> str:
        """The fingerprint that a model's KV is known by: a selector changes its numbers."""
        if self.selector == NONE:
            return fingerprint
        return digest("sparse", fingerprint.encode(), msgspec.msgpack.encode(self)).hex()[:32]
