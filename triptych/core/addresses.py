"""What addresses of the configuration may look like. Knows text only; connects to nothing."""

import re

_DIRECTORY = (
    r"embedded"
    r"|rediss?://([^/?#@\[\]\s]*@)?([\w.-]+|\[[\da-fA-F:.]+\])(:(?P<port>[0-9]{1,5}))?(/[0-9]*)?"
    r"|unix://([^/?#@\[\]\s]*@)?/[^?#\s]+"
)
"""No query: the client would take any option from there, over those that it is given."""


def is_directory(text: str) -> bool:
    """Whether it is ``embedded`` or the address of a Redis server, without options."""
    found = re.fullmatch(_DIRECTORY, text)
    return found is not None and int(found["port"] or 0) <= 65_535


def is_loopback(address: str) -> bool:
    """Whether it is empty or an address of this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    return not address or host in ("localhost", "::1") or host.startswith("127.")
