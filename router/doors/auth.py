"""Who a client is: API keys to tenants. Knows no door's protocol beyond the word ``Bearer``."""

import hashlib
import hmac
from collections.abc import Mapping

from triptych.core.errors import Unauthenticated
from triptych.core.ids import TenantId

PUBLIC = TenantId("public")
"""Everybody, when no keys are configured."""


class ApiKeys:
    """The configured keys (key to tenant). Holds digests only."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._tenants = [(_digest(key), TenantId(tenant)) for key, tenant in keys.items()]

    def tenant(self, authorization: str | None) -> TenantId:
        """The tenant of an ``Authorization`` value; raises Unauthenticated.

        Takes the same time whichever key is given: digests of one length, all of them compared.
        """
        if not self._tenants:
            return PUBLIC
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip() if scheme.lower() == "bearer" else "")
        found: TenantId | None = None
        for digest, tenant in self._tenants:
            if hmac.compare_digest(digest, given):
                found = tenant
        if found is None:
            raise Unauthenticated
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
