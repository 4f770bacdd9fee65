"""HTTP/1.1 towards the servers: connections that tell exactly how far an exchange got.

A general client hides whether a request was sent, and when the server let go of it. The router
must know both: to retry only what is safe to retry, and to call a leg ended only when it is.
"""

import asyncio
import errno
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

from kairos.http_response import HttpResponseError, HttpResponseParser
from kairos.router.workers.endpoint import WorkerEndpoint

IDLE_S = 3.0
"""Idle connections are closed after this; servers close theirs after 5 s (uvicorn's default), and
a request sent into a closing connection is lost."""
_PAUSE_BYTES = 256 << 10  # unread bytes of an answer beyond which the server has to wait
_MAX_ANSWER_BYTES = 16 << 20  # of a call that is read whole
_JOINED_BYTES = 64 << 10  # of a body that is copied, so that it goes out with its header lines
_MAX_IDLE = 4096  # connections to one server
NO_FILES = "no_more_files"
"""Reason of a connection that this process has no file descriptor or memory for."""


class BrokenError(Exception):
    """An exchange that did not come to its end; the message is one of a few words."""

    @property
    def reason(self) -> str:
        """For metrics and the client's programs."""
        return str(self).replace(" ", "_")


class EngineConnection(asyncio.Protocol):
    """One connection; one exchange at a time.

    Attributes:
        ended: the answer is complete, or never will be.
        broken: why it never will be.
        heard_s: when the server last sent something, or the exchange began; monotonic seconds.
    """

    __slots__ = (
        "_answer",
        "_closing",
        "_discard",
        "_most",
        "_on_end",
        "_paused",
        "_pieces",
        "_size",
        "_waiter",
        "broken",
        "ended",
        "heard_s",
        "transport",
    )

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.ended = True
        self.broken: BrokenError | None = None
        self.heard_s = 0.0
        self._answer = HttpResponseParser(self._keep)
        self._pieces: list[bytes] = []
        self._size = 0
        self._most = 0
        self._paused = False
        self._discard = False
        self._closing = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_end: Callable[[], None] | None = None

    def begin(
        self, head: bytes, body: bytes, on_end: Callable[[], None] | None = None, most: int = 0
    ) -> None:
        """Send a request.

        Args:
            on_end: called once, when the exchange has ended.
            most: bytes of the answer to hold at most without reading; 0 makes the server wait.
        """
        assert self.transport is not None
        self.ended = False
        self.heard_s = time.monotonic()
        self._answer.restart()
        self._pieces.clear()
        self._size = 0
        self._most = most
        self._discard = False
        self._on_end = on_end
        if len(body) > _JOINED_BYTES:
            self.transport.write(head)
            self.transport.write(body)
        else:
            self.transport.write(head + body)
        if self._closing:
            self._end("connection lost")

    @property
    def status(self) -> int:
        """Of the answer; 0 before its header lines are complete."""
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer, by lower-case name."""
        return self._answer.headers

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another exchange."""
        return self.ended and self._answer.reusable and not self._closing

    def take(self) -> bytes:
        """What has arrived of the body and was not taken yet."""
        pieces = self._pieces
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        if self._paused and self.transport is not None and not self._closing:
            self._paused = False
            self.transport.resume_reading()
        return data

    @property
    def arrived(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._pieces)

    async def wait(self) -> None:
        """Return when more has arrived, the exchange has ended, or `wake` was called."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Let `wait` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def discard(self) -> None:
        """Read on without keeping anything: only the end is of interest."""
        self._discard = True
        self.take()

    def close(self) -> None:
        """Close at once; an exchange in progress ends as broken."""
        self._closing = True
        if self.transport is not None:
            self.transport.abort()
        self._end("closed by the router")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.ended:  # nothing was asked
            self.close()
            return
        self.heard_s = time.monotonic()
        try:
            self._answer.feed(data)
        except HttpResponseError:
            self._end("malformed answer")
            self.close()
            return
        if self._answer.complete:
            self._end(None)
        if self._most and self._size > self._most:
            self._end("answer too long")
            self.close()
            return
        if not self._most and self._size > _PAUSE_BYTES and not self._paused and not self.ended:
            assert self.transport is not None
            self._paused = True
            self.transport.pause_reading()
        self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        try:
            if exc is None:
                self._answer.end()  # an answer without a length ends with its connection
            self._end(None if exc is None else "connection reset")
        except HttpResponseError:
            self._end("connection closed")

    def _keep(self, data: bytes) -> None:
        if not self._discard:
            self._pieces.append(data)
            self._size += len(data)

    def _end(self, problem: str | None) -> None:
        if self.ended:
            return
        self.ended = True
        self.broken = None if problem is None else BrokenError(problem)
        on_end, self._on_end = self._on_end, None
        self.wake()
        if on_end is not None:
            on_end()


class ConnectionPool:
    """Connections to the servers, kept open between requests.

    Args:
        context: for `https` servers.
        connect_timeout_s: for a connection to open.
        headers: sent with every request, such as Authorization.
    """

    def __init__(self, context: ssl.SSLContext, connect_timeout_s: float) -> None:
        self._context = context
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[str, deque[tuple[float, EngineConnection]]] = {}

    async def take(self, endpoint: WorkerEndpoint) -> EngineConnection:
        """An open connection.

        Raises:
            BrokenError: none could be opened.
        """
        idle = self._idle.get(endpoint.url)
        oldest_s = time.monotonic() - IDLE_S
        while idle:
            since_s, connection = idle.pop()
            if connection.reusable and since_s > oldest_s:
                return connection
            connection.close()
        return await self._connect(endpoint)

    def give(self, endpoint: WorkerEndpoint, connection: EngineConnection) -> None:
        """Hand a connection back; it is kept if it can serve again."""
        idle = self._idle.setdefault(endpoint.url, deque())
        connection.take()  # reads on, if it was paused
        if not connection.reusable or len(idle) >= _MAX_IDLE:
            connection.close()
            return
        idle.append((time.monotonic(), connection))

    def sweep(self) -> None:
        """Close what was idle for too long; due every second or so."""
        oldest_s = time.monotonic() - IDLE_S
        for idle in self._idle.values():
            while idle and (idle[0][0] <= oldest_s or not idle[0][1].reusable):
                idle.popleft()[1].close()

    def drop(self, endpoint: WorkerEndpoint) -> None:
        """Close the idle connections to a server."""
        for _, connection in self._idle.pop(endpoint.url, ()):
            connection.close()

    def close(self) -> None:
        for idle in self._idle.values():
            for _, connection in idle:
                connection.close()
        self._idle.clear()

    async def call(
        self,
        endpoint: WorkerEndpoint,
        method: str,
        path: str,
        timeout_s: float,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """A whole exchange: status, header lines, body.

        Raises:
            BrokenError: it did not come to its end.
            TimeoutError: not within `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            connection = await self.take(endpoint)
            try:
                start = head(endpoint, method, path, len(body), headers or {})
                connection.begin(start, body, most=_MAX_ANSWER_BYTES)
                while not connection.ended:
                    await connection.wait()
            except BaseException:
                connection.close()
                raise
        answer = connection.status, connection.headers, connection.take()
        broken = connection.broken
        self.give(endpoint, connection)
        if broken is not None:
            raise broken
        return answer

    async def _connect(self, endpoint: WorkerEndpoint) -> EngineConnection:
        scheme, _, key = endpoint.url.partition("://")
        secure = scheme == "https"
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    EngineConnection,
                    endpoint.host,
                    int(key.rpartition(":")[2]),
                    ssl=self._context if secure else None,
                    server_hostname=(endpoint.name or endpoint.host) if secure else None,
                )
        except TimeoutError:
            raise BrokenError("connect timed out") from None
        except ssl.SSLError as error:
            raise BrokenError("TLS failed") from error
        except ConnectionRefusedError:
            raise BrokenError("connection refused") from None
        except OSError as error:
            ours = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
            raise BrokenError("no more files" if ours else "connect failed") from error
        return connection


def head(
    endpoint: WorkerEndpoint, method: str, path: str, length: int, headers: Mapping[str, str]
) -> bytes:
    """Return the request line and the header lines.

    The router has written or checked every header value.
    """
    lines = [f"{method} {path} HTTP/1.1", f"host: {endpoint.key}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if method == "POST":
        lines += ["content-type: application/json", f"content-length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii")
