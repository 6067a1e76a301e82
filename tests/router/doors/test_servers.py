"""Sockets as the doors' servers open them."""

import asyncio
import socket

from router.doors.servers import bind


async def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Of a connection that was accepted, not of the one that listens: so asyncio decides."""
    found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accepted(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    server = await asyncio.start_server(accepted, sock=bind("127.0.0.1:0", "router.http"))
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await found != 0
        writer.close()
