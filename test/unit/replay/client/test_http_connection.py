"""Connections that carry one request and end in several ways."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kairos.http_response import HttpResponseError
from kairos.replay.client.http_connection import HttpConnection, open_connection

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"X-Kairos-Decode: d1\r\n\r\n5\r\nhello\r\nA;ext=1\r\n, world ok\r\n0\r\n\r\n"
)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def exchange(handler: Handler) -> tuple[HttpConnection, list[bytes]]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pieces: list[bytes] = []
    async with server:
        connection = await open_connection(
            f"http://127.0.0.1:{port}", lambda _status, piece, _now: pieces.append(piece)
        )
        connection.send(b"POST / HTTP/1.1\r\n\r\n", memoryview(b"body"))
        try:
            await asyncio.wait_for(asyncio.shield(connection.ended), 30)
        finally:
            connection.close()
    return connection, pieces


async def test_request_is_sent_and_its_response_received() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"body")
        writer.write(CHUNKED)
        await writer.drain()

    connection, pieces = await exchange(handler)
    assert b"".join(pieces) == b"hello, world ok"
    assert connection.response.complete


async def test_close_without_a_response_is_an_error() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.close()

    with pytest.raises(HttpResponseError, match="in the middle"):
        await exchange(handler)
