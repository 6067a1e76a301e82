"""One process's worth of Triptych: an instance and the gRPC server in front of it.

Hosted by ``cluster.__main__`` or a Ray actor. Knows neither.
"""

import asyncio
import os
import sys

import grpc

from cluster.host import InstanceSpec
from cluster.instance import HostedInstance
from cluster.instance_build import build_instance
from cluster.remote import max_message_bytes
from decode_service.server import add_decode
from encoder_service.server import add_encoder
from prefill_service.server import add_prefill
from triptych.core.errors import Unavailable
from triptych.core.lifecycle import Stage
from triptych.wire.server import ServerLimits, add_instance, make_server

_SWITCH_S = 1e-4
"""For so long a thread may keep Python's lock from others where a loop, pictures and steps of the
language model want it. The interpreter's 5 ms would let the loop do all it has to do first."""
_GRACE_S = 1.0
"""How long calls in flight may take to finish when the server stops."""


class Node:
    """A served instance."""

    def __init__(self, instance: HostedInstance, server: grpc.aio.Server, address: str) -> None:
        self.instance = instance
        self.address = address
        self._server = server

    @classmethod
    async def start(cls, spec: InstanceSpec) -> "Node":
        """Build the instance (slow: weights) and serve it on an ephemeral port."""
        os.nice(spec.config.model.nice)  # of this thread, and of all that are started from here on
        if {Stage.ENCODE} < set(spec.role):
            sys.setswitchinterval(_SWITCH_S)
        instance = await build_instance(spec)
        server = make_server(spec.secret, ServerLimits(max_message_bytes(spec)))
        add_instance(server, instance)
        if Stage.ENCODE in spec.role:
            add_encoder(server, instance.submit)
        if Stage.PREFILL in spec.role:
            add_prefill(server, instance.submit)
        if Stage.DECODE in spec.role:
            add_decode(server, instance.submit)
        host = spec.config.transfer.host
        port = server.add_insecure_port(f"{host}:0")
        if port == 0:
            await instance.close()
            raise Unavailable(f"{spec.id} cannot listen on {host}")
        await server.start()
        return cls(instance, server, f"{host}:{port}")

    async def wait(self) -> str:
        """Return when the instance broke, and say why."""
        return await self.instance.wait()

    async def close(self, drain_s: float) -> None:
        """Drain, then stop serving and free everything."""
        if drain_s > 0:
            await self.instance.drain(drain_s)
        await self.instance.close()
        await asyncio.shield(self._server.stop(_GRACE_S))
