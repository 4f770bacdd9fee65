"""Responses cut into pieces, and connections that end in every way."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.http_response import HttpResponseError, HttpResponseParser
from kairos.replay.client.http_connection import HttpConnection, open_connection

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"X-Kairos-Decode: d1\r\n\r\n5\r\nhello\r\nA;ext=1\r\n, world ok\r\n0\r\n\r\n"
)


def fed(data: bytes, cuts: list[int]) -> tuple[HttpResponseParser, bytes]:
    pieces: list[bytes] = []
    response = HttpResponseParser(pieces.append)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        response.feed(data[start:end])
    return response, b"".join(pieces)


@given(st.lists(st.integers(0, 160), max_size=12))
def test_1_any_cut_gives_the_same_body(cuts: list[int]) -> None:
    response, body = fed(CHUNKED, cuts)
    assert (response.status, response.complete, body) == (200, True, b"hello, world ok")
    assert response.headers["x-kairos-decode"] == "d1"


def test_2_bodies_with_a_length_and_without() -> None:
    response, body = fed(b"HTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nabc", [])
    assert (response.status, response.complete, body) == (400, True, b"abc")
    response, body = fed(b"HTTP/1.0 200 OK\r\n\r\nab", [20])
    assert not response.complete
    response.end()
    assert (response.complete, body) == (True, b"ab")
    assert fed(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", [])[0].complete


@pytest.mark.parametrize(
    "data",
    [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED[:-20], b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"],
)
def test_3_an_end_in_the_middle_is_an_error(data: bytes) -> None:
    response, _ = fed(data, [])
    with pytest.raises(HttpResponseError, match="in the middle"):
        response.end()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/1.1 abc\r\n\r\n", "not an HTTP/1.1 response"),
        (CHUNKED.replace(b"5\r\n", b"zz\r\n"), "malformed response body"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 70_000, "without an end"),
        (CHUNKED.partition(b"5\r\n")[0] + b"5" * 2000, "malformed response body"),
    ],
)
def test_4_other_bytes_are_an_error(data: bytes, says: str) -> None:
    with pytest.raises(HttpResponseError, match=says):
        fed(data, [])


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


async def test_5_a_request_goes_out_and_an_answer_comes_back() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"body")
        writer.write(CHUNKED)
        await writer.drain()

    connection, pieces = await exchange(handler)
    assert b"".join(pieces) == b"hello, world ok"
    assert connection.response.complete


async def test_6_a_hang_up_without_an_answer() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.close()

    with pytest.raises(HttpResponseError, match="in the middle"):
        await exchange(handler)
