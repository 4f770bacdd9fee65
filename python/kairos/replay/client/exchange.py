"""One request on the wire: its connections, its stream, its end."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from functools import cache
from urllib.parse import urlsplit

from kairos.replay.client.api import Api
from kairos.replay.client.http_connection import HttpConnection, WireError
from kairos.replay.client.record import RequestOutcome, RequestRecord, make_record
from kairos.replay.client.stream import StreamError, TokenStream
from kairos.replay.client.target import Endpoint
from kairos.replay.plan.plan import PlannedRequest

_SHOWN_BYTES = 400
_INSTANCE_HEADERS = ("x-kairos-prefill", "x-kairos-decode")


class Exchange:
    """Posts a request to its legs and stamps what comes back.

    Attributes:
        rid: id of the request.
        due: monotonic time at which it has to leave; all its times count from there.
    """

    def __init__(
        self, planned: PlannedRequest, rid: str, due: float, legs: Sequence[Endpoint], api: Api
    ) -> None:
        self.rid = rid
        self.due = due
        self._planned = planned
        self._legs = legs
        self._api = api
        self._sent: float | None = None
        self._connections: list[HttpConnection] = []
        self._stream = api.stream(planned.request.output_tokens)
        self._error_body = b""

    @property
    def sent_s(self) -> float:
        """Monotonic time at which it left; when it was due, if it did not."""
        return self.due if self._sent is None else self._sent

    @property
    def stream(self) -> TokenStream:
        """What has been received so far."""
        return self._stream

    async def dial(self) -> None:
        """Connect to every leg. Requests leave on connections that are open already: dialling
        takes a millisecond, and keeping them from request to request loses requests when the
        server closes an idle one.

        Raises:
            OSError: nothing listens.
        """
        for leg in self._legs:
            self._connections.append(await _connect(leg, self._receiver(leg)))

    def send(self, body: bytes | memoryview, send_slo: bool) -> None:
        """Write the request to every leg, now.

        Raises:
            OSError: a connection is gone already.
        """
        headers = self._api.headers(self._planned, send_slo)
        for leg, connection in zip(self._legs, self._connections, strict=True):
            connection.send(_head(leg, self._api.path, headers, len(body)), body)
        self._sent = time.monotonic()

    async def answer(self) -> tuple[RequestOutcome, str]:
        """Wait until the streaming leg has ended: how it ended and why."""
        try:
            await self._first_end()
            self._stream.close()
        except StreamError as error:
            return RequestOutcome.STREAM_ERROR, str(error)
        except _HttpError as error:
            return RequestOutcome.HTTP_ERROR, str(error)
        except (OSError, WireError) as error:
            return RequestOutcome.CONNECTION_ERROR, named(error)
        return self._verdict()

    def close(self) -> None:
        """Hang up, which makes the servers abort what is left of the request."""
        for connection in self._connections:
            connection.close()

    def record(self, outcome: RequestOutcome, reason: str) -> RequestRecord:
        """Account for what has been seen."""
        self._stream.settle()
        return make_record(
            self._planned,
            self.rid,
            outcome,
            reason=reason,
            send_lag_s=None if self._sent is None else self._sent - self.due,
            token_times_s=[t - self.due for t in self._stream.times],
            prompt_tokens=self._stream.prompt_tokens,
            cached_tokens=self._stream.cached_tokens,
            instance=self._instance(),
        )

    def _receiver(self, leg: Endpoint) -> HttpConnection:
        def on_body(data: bytes, now: float) -> None:
            if connection.response.status != 200:
                self._error_body = (self._error_body + data)[:_SHOWN_BYTES]
            elif leg.streams:
                self._stream.feed(data, now)

        connection = HttpConnection(on_body)
        return connection

    async def _first_end(self) -> None:
        """Return when the streaming leg has ended, raise when any leg has failed: with one leg of
        a pair gone, the other would wait for minutes."""
        pending = {connection.ended for connection in self._connections}
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            streaming_done = False
            for leg, connection in zip(self._legs, self._connections, strict=True):
                if connection.ended not in done:
                    continue
                connection.ended.result()
                status = connection.response.status
                if status != 200:
                    text = self._error_body.decode("utf-8", "replace").strip()
                    raise _HttpError(f"{leg.name}: status {status}: {text}")
                streaming_done = streaming_done or leg.streams
            if streaming_done:
                return

    def _verdict(self) -> tuple[RequestOutcome, str]:
        """Judge a stream that ended without an error."""
        self._stream.settle()
        finish = self._stream.finish
        asked, got = self._planned.request.output_tokens, len(self._stream.times)
        if finish is not None and finish.get("type") == "abort":
            return RequestOutcome.ABORTED, str(finish.get("message") or "no message")
        if got < asked:
            return RequestOutcome.INCOMPLETE, f"{got} of {asked} tokens, finish reason {finish}"
        return RequestOutcome.OK, ""

    def _instance(self) -> str:
        """Who served it: the legs it was sent to, or what a router says in its headers."""
        if len(self._legs) > 1:
            return ">".join(leg.name for leg in self._legs)
        headers = self._connections[0].response.headers if self._connections else {}
        return ">".join(headers[name] for name in _INSTANCE_HEADERS if name in headers)


class _HttpError(Exception):
    pass


def named(error: Exception) -> str:
    """Type and text of an error, for a record."""
    return f"{type(error).__name__}: {error}"


async def _connect(leg: Endpoint, connection: HttpConnection) -> HttpConnection:
    parts = urlsplit(leg.url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{leg.url}: not an HTTP URL")
    secure = parts.scheme == "https"
    await asyncio.get_running_loop().create_connection(
        lambda: connection,
        parts.hostname or "",
        parts.port or (443 if secure else 80),
        ssl=_tls() if secure else None,
    )
    return connection


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # takes tens of milliseconds


def _head(leg: Endpoint, path: str, headers: dict[str, str], length: int) -> bytes:
    parts = urlsplit(leg.url)
    lines = [
        f"POST {parts.path}{path} HTTP/1.1",
        f"host: {parts.netloc.rpartition('@')[2]}",
        "content-type: application/json",
        "accept: text/event-stream",
        "connection: close",
        f"content-length: {length}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
