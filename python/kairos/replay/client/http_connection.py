"""One HTTP/1.1 exchange over a connection of its own, with little work per received piece.

A general client spends 50 microseconds on each piece of a stream. With a hundred streams that all
get a token in the same decode step, that delays the next request by milliseconds and stamps tokens
late. Here a piece costs a few microseconds.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast

_HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"
_MAX_HEAD = 64 * 1024
_MAX_LINE = 1024


class WireError(Exception):
    """The server's bytes are no HTTP response, or end too early."""


class Response:
    """Cuts a response into head and body, whatever pieces it arrives in.

    Args:
        on_body: gets each piece of the body without its framing.

    Attributes:
        status: 0 until the head has arrived.
        headers: names in lower case; of a repeated one the last value.
        complete: the body has ended by its own framing.
    """

    def __init__(self, on_body: Callable[[bytes], None]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self._on_body = on_body
        self._pending = b""
        self._chunked = False
        self._left: int | None = None  # of the chunk or the body; None: until the connection ends
        self._in_chunk = False

    def feed(self, data: bytes) -> None:
        """Take bytes in any cut.

        Raises:
            WireError: not HTTP.
        """
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if not self.status:
            end = data.find(_HEAD_END)
            if end < 0:
                if len(data) > _MAX_HEAD:
                    raise WireError("a response head without an end")
                self._pending = data
                return
            self._head(data[:end])
            data = data[end + len(_HEAD_END) :]
        if self._chunked:
            self._chunks(data)
        elif data:
            self._plain(data)

    def end(self) -> None:
        """The connection has ended.

        Raises:
            WireError: in the middle of the response.
        """
        if self.complete or (self.status and not self._chunked and self._left is None):
            self.complete = True
            return
        raise WireError("the server closed the connection in the middle of the response")

    def _head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise WireError(f"not an HTTP/1.1 response: {first[:80]!a}")
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.status = int(parts[1])
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        if not self._chunked and length.isdigit():
            self._left = int(length)
            self.complete = self._left == 0

    def _plain(self, data: bytes) -> None:
        self._on_body(data)
        if self._left is not None:
            self._left -= len(data)
            self.complete = self._left <= 0

    def _chunks(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self.complete:
            if self._in_chunk:
                left = cast(int, self._left)
                piece = data[at : at + left]
                self._on_body(piece)
                at += len(piece)
                self._left = left - len(piece)
                self._in_chunk = self._left > 0
                continue
            # A size line, or the line end behind a chunk, or a trailer: a line in any case.
            end = data.find(_LINE_END, at)
            if end < 0:
                if len(data) - at > _MAX_LINE:
                    raise WireError("a chunk size line without an end")
                self._pending = data[at:]
                return
            line = data[at:end]
            at = end + len(_LINE_END)
            if line:
                self._size(line)

    def _size(self, line: bytes) -> None:
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise WireError(f"not a chunk size: {line[:40]!a}") from None
        self.complete = size == 0
        self._left, self._in_chunk = size, size > 0


class HttpConnection(asyncio.Protocol):
    """A connection that carries one request.

    Args:
        on_body: gets each piece of the body and the monotonic time it arrived at. What it raises
            ends the exchange.

    Attributes:
        ended: done when the response is complete; its exception says why it is not.
    """

    def __init__(self, on_body: Callable[[bytes, float], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._now = 0.0
        self.response = Response(lambda data: on_body(data, self._now))
        self._transport: asyncio.Transport | None = None

    def send(self, head: bytes, body: bytes | memoryview) -> None:
        """Write the request; what the socket does not take at once follows by itself."""
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection before the request")
        self._transport.writelines((head, body))

    def close(self) -> None:
        """Hang up; harmless when closed."""
        if self._transport is not None:
            self._transport.abort()
        if not self.ended.done():
            self.ended.cancel()
        elif not self.ended.cancelled():
            self.ended.exception()  # seen, so that nobody complains about it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        self._now = time.monotonic()
        try:
            self.response.feed(data)
        except Exception as error:
            self.ended.set_exception(error)
            return
        if self.response.complete:
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is not None:
            self.ended.set_exception(error)
            return
        try:
            self.response.end()
        except WireError as broken:
            self.ended.set_exception(broken)
        else:
            self.ended.set_result(None)
