"""One HTTP/1.1 exchange over a connection of its own, with little work per received piece.

A general client spends about 50 microseconds on each piece of a stream. With a hundred streams that
all receive a token in the same decode step, this delays the next request by milliseconds and stamps
tokens late. Here a piece costs a few microseconds.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from functools import cache
from urllib.parse import urlsplit

from kairos.http_response import HttpResponseError, HttpResponseParser

OnBody = Callable[[int, bytes, float], None]
"""Receives the status, a piece of the body and the monotonic time at which the piece arrived."""


class HttpConnection:
    """An open connection that carries one request.

    Attributes:
        response: the response as far as it has arrived.
        ended: done when the response is complete; its exception says why the response is not.
    """

    def __init__(self, transport: asyncio.Transport, receiver: "_Receiver") -> None:
        self.response = receiver.response
        self.ended = receiver.ended
        self._transport = transport

    def send(self, head: bytes, body: bytes | memoryview) -> None:
        """Write the request; the event loop sends the part that the socket does not take at once.

        Raises:
            ConnectionResetError: the server has closed the connection.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection before the request")
        self._transport.writelines((head, body))

    def close(self) -> None:
        """Close the connection; a second call has no effect."""
        self._transport.abort()
        if not self.ended.done():
            self.ended.cancel()
        elif not self.ended.cancelled():
            self.ended.exception()  # retrieved, so that asyncio logs no warning


class _Receiver(asyncio.Protocol):
    """The receiving side of a connection."""

    def __init__(self, on_body: OnBody) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._now = 0.0
        self.response = HttpResponseParser(
            lambda piece: on_body(self.response.status, piece, self._now)
        )

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
        except HttpResponseError as broken:
            self.ended.set_exception(broken)
        else:
            self.ended.set_result(None)


async def open_connection(url: str, on_body: OnBody) -> HttpConnection:
    """Connect to the server of an http or https URL.

    Args:
        url: URL of the server; its path is not used.
        on_body: an exception that it raises ends the exchange.

    Raises:
        OSError: the connection was refused or failed.
        ValueError: `url` is no http or https URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{url}: not an HTTP URL")
    secure = parts.scheme == "https"
    transport, receiver = await asyncio.get_running_loop().create_connection(
        lambda: _Receiver(on_body),
        parts.hostname or "",
        parts.port or (443 if secure else 80),
        ssl=_tls() if secure else None,
    )
    return HttpConnection(transport, receiver)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # takes tens of milliseconds
