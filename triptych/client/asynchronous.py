"""The asynchronous client. Knows gRPC's asyncio channel; values come from ``answer``."""

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from triptych.client.answer import Final, Part, part_of
from triptych.client.connection import OPTIONS, error_of, metadata, methods
from triptych.client.options import GenerateOptions, PictureSource, Turn, make_request
from triptych.core.errors import InvariantBroken
from triptych.v1 import inference_pb2 as pb


class AsyncGeneration(AsyncIterator[Part]):
    """An answer as it is made. Iterate over its parts; the last one carries ``final``."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._messages = aiter(call)
        self.request_id = ""
        """The server's name of the request, known with the first part."""
        self.final: Final | None = None

    async def __anext__(self) -> Part:
        """The next part; raises the TriptychError that ended the request."""
        try:
            message = await anext(self._messages)
            while message.WhichOneof("kind") == "started":
                self.request_id = message.started.request_id
                message = await anext(self._messages)
        except StopAsyncIteration:
            if self.final is None:
                raise InvariantBroken("the answer ended without its result") from None
            raise
        except grpc.RpcError as error:
            raise error_of(error) from None
        part = part_of(message)
        self.final = part.final or self.final
        return part

    async def text(self) -> str:
        """Wait for the rest of the answer; the text of its first choice from here on."""
        return "".join([part.text async for part in self if part.choice == 0])

    def close(self) -> None:
        """Give the answer up; the server cancels the request."""
        self._call.cancel()


class AsyncClient:
    """A connection to the gRPC door at ``target`` (``host:port``), for one event loop."""

    def __init__(self, target: str, api_key: str = "") -> None:
        self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self._metadata = metadata(api_key)
        self._methods = methods(self._channel)

    def generate(
        self,
        question: str | Sequence[Turn],
        pictures: Sequence[PictureSource] = (),
        **options: Unpack[GenerateOptions],
    ) -> AsyncGeneration:
        """Ask a question about pictures (paths or encoded bytes), or go on with a conversation."""
        message = make_request(question, pictures, options)
        timeout_s = options.get("timeout_s")
        return AsyncGeneration(
            self._methods.generate(message, timeout=timeout_s, metadata=self._metadata)
        )

    async def cancel(self, request_id: str) -> bool:
        """End a running request; whether there was one."""
        message = pb.CancelGenerateRequest(request_id=request_id)
        try:
            answer = await self._methods.cancel(message, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from None
        return bool(answer.was_running)

    async def list_models(self) -> tuple[str, ...]:
        """Names of the models that are served."""
        try:
            answer = await self._methods.list_models(
                pb.ListModelsRequest(), metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise error_of(error) from None
        return tuple(model.name for model in answer.models)

    async def close(self) -> None:
        """Close the connection; answers in work are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
