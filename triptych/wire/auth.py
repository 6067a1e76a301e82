"""Proof that a caller belongs to the cluster: a token derived from the cluster's secret.

The secret itself (it also keys tenants' cache salts and transfers) never travels.
"""

import hashlib
import hmac

METADATA_KEY = "triptych-token"


def token(secret: bytes) -> str:
    """What every call carries: HMAC-SHA-256 of a fixed text under the secret, in hex."""
    return hmac.new(secret, b"triptych stage api v1", "sha256").hexdigest()


def is_token(given: str | bytes, expected: str) -> bool:
    """Compare in constant time, whatever the length of what was given."""
    raw = given if isinstance(given, bytes) else given.encode()
    mine = hashlib.sha256(expected.encode()).digest()
    return hmac.compare_digest(hashlib.sha256(raw).digest(), mine)
