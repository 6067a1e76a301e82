"""The connection to an instance that another process serves, and what that process says of it."""

import msgspec

from cluster.host import InstanceSpec
from triptych.wire.client import ClientOptions, RemoteInstance


class Served(msgspec.Struct, frozen=True):
    """What a child says when it serves."""

    address: str
    pid: int


def connect(address: str, spec: InstanceSpec) -> RemoteInstance:
    """The connection to an instance that serves at ``address``."""
    options = ClientOptions(
        secret=spec.secret,
        timeout_s=spec.config.cluster.timeout_s,
        max_message_bytes=max_message_bytes(spec),
    )
    return RemoteInstance(address, options)


def max_message_bytes(spec: InstanceSpec) -> int:
    """Bound of one message of the stage API: a picture, or a prompt of any allowed length."""
    return spec.config.limits.max_picture_bytes + 8 * 2**20
