"""Client connections: what aiohttp's server leaves open about their beginning and their end.

A connection whose header lines do not arrive in time is closed, and so is one that does not read
its answer; connections are counted and bounded, and what the HTTP parser refuses is answered in
the router's own form, without echoing the bytes.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from kairos.router.config.settings import RouterConfig, Timeouts
from kairos.router.edge.answers import SERVER, refusal
from kairos.router.edge.errors import invalid
from kairos.router.edge.listener import ConnectionCount

KEEP_ALIVE_S = 75.0  # idle client connections; longer than common proxies' 60 s
_LINGER_S = 2.0  # for the rest of a body that was refused
# Relays bound every write of a stream themselves and know whose it is: they come first.
_AFTER_RELAY_S = 0.25


def protocol_factory(
    server: web.Server,
    config: RouterConfig,
    refused: Callable[[str], None],
    count: ConnectionCount,
) -> Callable[[], asyncio.Protocol]:
    """For a `Listener`: makes the protocol of each connection.

    Args:
        server: has the handler.
        refused: told the reason of what never became a request.
        count: hears of connections that end.
    """
    limits = config.limits
    options: dict[str, Any] = {
        "max_line_size": 8190,
        # The whole head is bounded by check_headers(); a single line may be all of it.
        "max_field_size": limits.max_header_kib << 10,
        "max_headers": limits.max_headers,
        "keepalive_timeout": KEEP_ALIVE_S,
        "lingering_time": _LINGER_S,
        "auto_decompress": False,  # a small body must not become a huge one
        "access_log": None,
    }
    timeouts = config.timeouts

    def make() -> asyncio.Protocol:
        return ClientConnection(server, count, timeouts, refused, **options)

    return make


class ClientConnection(RequestHandler):
    """One client connection."""

    __slots__ = ("_count", "_header_timer", "_refused", "_timeouts", "_write_timer")

    def __init__(
        self,
        server: web.Server,
        count: ConnectionCount,
        timeouts: Timeouts,
        refused: Callable[[str], None],
        **options: Any,
    ) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._count = count
        self._timeouts = timeouts
        self._write_timer: asyncio.TimerHandle | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._refused = refused

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._start_timer()  # a client that sends nothing is cut off, too

    def connection_lost(self, exc: BaseException | None) -> None:
        self._count.leave()
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._stop_timer()
            self._fail_cut_body()
        elif self._header_timer is None and self._waits_for_head:
            self._start_timer()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, BadHttpMessage):
            answer = super().handle_error(request, status, exc, message)
            answer.headers.update(SERVER)
            return answer
        too_large = isinstance(exc, LineTooLong) or "Too many headers" in exc.message
        status, reason = (431, "headers_large") if too_large else (400, "http_malformed")
        text = "the header lines are too large" if too_large else "this is not valid HTTP/1.1"
        self._refused(reason)
        answer = refusal(invalid(status, reason, text))
        answer.force_close()
        return answer

    def _fail_cut_body(self) -> None:
        """End a body that aiohttp's parser gave up, as it does for a bad chunk.

        The parser tells no reader: other bytes follow a body that has not ended.
        """
        current = self._current_request
        if current is not None and not current.content.is_eof():
            current.content.set_exception(BadHttpMessage("malformed body"))
            current.content.feed_eof()  # no rest to wait for
            self.close()  # after the answer

    @property
    def _waits_for_head(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._header_timer = loop.call_later(self._timeouts.header_timeout_s, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _watch_reader(self, before: int | None = None) -> None:
        """Cut the client off unless it has read something since `before` bytes were unsent."""
        if self.transport is None:
            return
        unsent = self.transport.get_write_buffer_size()
        if before is not None and unsent >= before:
            self.transport.abort()  # not close(): that would wait for the client too
            return
        wait_s = self._timeouts.write_timeout_s + _AFTER_RELAY_S
        loop = asyncio.get_running_loop()
        self._write_timer = loop.call_later(wait_s, self._watch_reader, unsent)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _head_is_late(self) -> None:
        self._header_timer = None
        if self._waits_for_head:
            self._refused("headers_slow")
            self.force_close()
