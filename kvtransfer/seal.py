"""Keys of a connection and what is made with them: MACs of frames, tags of payloads.

Frames carry keyed BLAKE2b (RFC 7693), payloads AES-GMAC (NIST SP 800-38D: GCM over data that is
only authenticated) under a key of the same session, with the number of the announcing frame as
nonce, so no nonce comes twice under one key. Measured on one core: AES-GMAC 8 GB/s at 64 KiB and 19
at 1 MiB. BLAKE2b, because of frames below 2 KiB it keeps the interpreter lock: HMAC lets go of it
and was seen to wait 15 to 50 us for it behind an event loop. Knows bytes, no messages.
"""

import hashlib
import hmac
from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

MAC_BYTES = 16
TAG_BYTES = 16


def derive(secret: bytes, label: bytes, *fields: bytes | str) -> bytes:
    """A key for one purpose; fields are length-prefixed, so no two purposes collide."""
    data = b"triptych-kvtransfer-1 " + label
    for field in fields:
        raw = field.encode() if isinstance(field, str) else field
        data += len(raw).to_bytes(4, "little") + raw
    return hmac.digest(secret, data, "sha256")


def frame_mac(key: bytes, number: int, prefix: bytes, body: bytes) -> bytes:
    """MAC of the ``number``-th frame of one direction."""
    mac = hashlib.blake2b(number.to_bytes(8, "little"), key=key, digest_size=MAC_BYTES)
    mac.update(prefix)
    mac.update(body)
    return mac.digest()


def payload_tag(key: bytes, number: int, parts: Sequence[memoryview]) -> bytes:
    """Tag of ``parts``, one behind the other, under the 32 bytes of ``key``, announced by the
    ``number``-th frame of the giver."""
    nonce = number.to_bytes(12, "little")
    state = Cipher(algorithms.AES(key[:16]), modes.GCM(nonce)).encryptor()
    for part in parts:
        state.authenticate_additional_data(part)
    state.finalize()
    return state.tag
