"""The typed Python client of the gRPC door: ``Client`` and ``AsyncClient``."""

from triptych.client.answer import Final, Part, Timeline, Token, Usage
from triptych.client.asynchronous import AsyncClient, AsyncGeneration
from triptych.client.options import GenerateOptions, Turn
from triptych.client.synchronous import Client, Generation

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "Client",
    "Final",
    "GenerateOptions",
    "Generation",
    "Part",
    "Timeline",
    "Token",
    "Turn",
    "Usage",
]
