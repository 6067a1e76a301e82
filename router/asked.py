"""The shape of a request, for the ledger: what a replay needs, and nothing that was said.

Blocks are named by their salted keys, so equal beginnings of one tenant are seen to be equal and
nobody can look for a known text. Knows prompts; no file.
"""

from router.journey import Trip
from router.ledger import Asked

BLOCK_TOKENS = 64
"""Prompts are compared in steps of so many tokens."""
_DOMAIN = "ledger"
"""In place of a model's name: keys of caches and of the ledger have nothing in common."""


def asked(trip: Trip, arrival_s: float) -> Asked:
    """The shape of a trip's request."""
    request, prompt = trip.request, trip.prompt
    pictures = []
    for item in prompt.items:
        _, rows, columns = item.grid
        merged = max(1, round((rows * columns / item.num_tokens) ** 0.5))
        pictures.append((item.key[:8].hex(), item.offset, columns // merged, rows // merged))
    return Asked(
        arrival_s=arrival_s,
        prompt_tokens=len(prompt),
        max_tokens=request.stop.max_tokens,
        slo=request.slo.name,
        block_tokens=BLOCK_TOKENS,
        blocks=tuple(key[:8].hex() for key in trip.keys.of(_DOMAIN, BLOCK_TOKENS)),
        pictures=tuple(pictures),
    )
