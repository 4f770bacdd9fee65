"""One request on the wire: its connections, its token stream and its outcome."""

import asyncio
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from kairos.http_response import HttpResponseError
from kairos.replay.client.api import Api
from kairos.replay.client.http_connection import HttpConnection, OnBody, open_connection
from kairos.replay.client.record import ReceivedTokens, RequestOutcome, RequestRecord, make_record
from kairos.replay.client.stream import StreamError, TokenStream
from kairos.replay.client.target import Endpoint
from kairos.replay.plan.plan import PlannedRequest

_SHOWN_BYTES = 400
_SERVER_HEADERS = ("x-kairos-prefill", "x-kairos-decode")


class Exchange:
    """Posts a request to its endpoints and stamps the tokens of the response.

    Attributes:
        rid: id of the request.
        due_s: monotonic time at which the request must leave; its record counts from there.
    """

    def __init__(
        self,
        planned: PlannedRequest,
        rid: str,
        due_s: float,
        endpoints: Sequence[Endpoint],
        api: Api,
    ) -> None:
        self.rid = rid
        self.due_s = due_s
        self._planned = planned
        self._endpoints = endpoints
        self._api = api
        self._sent_s: float | None = None
        self._connections: list[HttpConnection] = []
        self._stream = api.stream(planned.request.output_tokens)
        self._error_body = b""

    @property
    def sent_s(self) -> float:
        """Monotonic time at which the request left; `due_s` if it has not left."""
        return self.due_s if self._sent_s is None else self._sent_s

    @property
    def stream(self) -> TokenStream:
        """The tokens received so far."""
        return self._stream

    async def dial(self) -> None:
        """Connect to every endpoint.

        Requests leave on connections that are open already, because dialling takes a millisecond.
        Every request has its own: a server that closes a kept connection would lose a request.

        Raises:
            OSError: an endpoint refuses the connection.
        """
        for endpoint in self._endpoints:
            connection = await open_connection(endpoint.url, self._receiver(endpoint))
            self._connections.append(connection)

    def send(self, body: bytes | memoryview, send_slo: bool) -> None:
        """Write the request to every endpoint at once.

        Raises:
            OSError: a connection is closed already.
        """
        headers = self._api.headers(self._planned, send_slo)
        for endpoint, connection in zip(self._endpoints, self._connections, strict=True):
            connection.send(_head(endpoint, self._api.path, headers, len(body)), body)
        self._sent_s = time.monotonic()

    async def answer(self) -> tuple[RequestOutcome, str]:
        """Wait for the end of the token stream and return the outcome with its reason."""
        try:
            await self._first_end()
            self._stream.close()
        except StreamError as error:
            return RequestOutcome.STREAM_ERROR, str(error)
        except _HttpError as error:
            return RequestOutcome.HTTP_ERROR, str(error)
        except (OSError, HttpResponseError) as error:
            return RequestOutcome.CONNECTION_ERROR, named(error)
        return self._outcome()

    def close(self) -> None:
        """Close the connections, which makes the servers abort an unfinished request."""
        for connection in self._connections:
            connection.close()

    def record(self, outcome: RequestOutcome, reason: str) -> RequestRecord:
        """Return the record of the tokens received so far."""
        stream = self._stream
        stream.settle()
        received = ReceivedTokens(
            send_lag_s=None if self._sent_s is None else self._sent_s - self.due_s,
            times_s=[t - self.due_s for t in stream.times],
            prompt_tokens=stream.prompt_tokens,
            cached_tokens=stream.cached_tokens,
            instance=self._instance(),
        )
        return make_record(self._planned, self.rid, outcome, reason, received)

    def _receiver(self, endpoint: Endpoint) -> OnBody:
        def on_body(status: int, piece: bytes, now: float) -> None:
            if status != 200:
                self._error_body = (self._error_body + piece)[:_SHOWN_BYTES]
            elif endpoint.streams:
                self._stream.feed(piece, now)

        return on_body

    async def _first_end(self) -> None:
        """Return when the streaming endpoint has ended; raise when any endpoint has failed.

        If one server of a pair fails, the other would wait for minutes.
        """
        pending = {connection.ended for connection in self._connections}
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            streaming_done = False
            for endpoint, connection in zip(self._endpoints, self._connections, strict=True):
                if connection.ended not in done:
                    continue
                connection.ended.result()
                status = connection.response.status
                if status != 200:
                    text = self._error_body.decode("utf-8", "replace").strip()
                    raise _HttpError(f"{endpoint.name}: status {status}: {text}")
                streaming_done = streaming_done or endpoint.streams
            if streaming_done:
                return

    def _outcome(self) -> tuple[RequestOutcome, str]:
        """Return the outcome of a stream that ended without an error."""
        self._stream.settle()
        finish = self._stream.finish
        expected, received = self._planned.request.output_tokens, len(self._stream.times)
        if finish is not None and finish.get("type") == "abort":
            return RequestOutcome.ABORTED, str(finish.get("message") or "no message")
        if received < expected:
            reason = f"{received} of {expected} tokens, finish reason {finish}"
            return RequestOutcome.INCOMPLETE, reason
        return RequestOutcome.OK, ""

    def _instance(self) -> str:
        """Return the servers: the endpoints of a pair, or those in a router's headers."""
        if len(self._endpoints) > 1:
            return ">".join(endpoint.name for endpoint in self._endpoints)
        headers = self._connections[0].response.headers if self._connections else {}
        return ">".join(headers[name] for name in _SERVER_HEADERS if name in headers)


class _HttpError(Exception):
    """A response with a status other than 200."""


def named(error: Exception) -> str:
    """Return type and text of an error, for a record."""
    return f"{type(error).__name__}: {error}"


def _head(endpoint: Endpoint, path: str, headers: dict[str, str], length: int) -> bytes:
    parts = urlsplit(endpoint.url)
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
