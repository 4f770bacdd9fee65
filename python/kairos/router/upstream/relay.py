"""The answer's way to the client: bytes as they are, in whole events, within bounds."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import HttpVersion11, web

from kairos.router.paths import RESPONSES
from kairos.router.upstream.engine_answer import error_event, is_aborted, response_end, usage_of

_MAX_EVENT = 16 << 20
_TAIL = 8192
_STARTS = (b"data:", b"event:", b"id:", b":", b"retry:")
_INDEX = re.compile(rb'"index":\s*(\d{1,9})')
_NO_CHOICES = re.compile(rb'"choices":\s*\[\]')


class SlowClientError(Exception):
    """The client stopped to read."""


class Relay:
    """Sends a stream to a client, and keeps what its end is judged by.

    Events are not parsed. An event is sent when it is whole, so that a break never leaves half of
    one in front of the error event.

    Args:
        path: the endpoint's.
        batch: events of several sequences, each with its index.

    Attributes:
        error: the error that the server sent in the stream, if it did.
        change: applied to whole events before they are sent; None: as they are.
        first_s, last_s: when the first and the last bytes came, monotonic seconds; 0 before.
    """

    def __init__(
        self, request: web.BaseRequest, write_timeout_s: float, path: str, batch: bool = False
    ) -> None:
        self._request = request
        self._path = path
        self._counts: dict[int, int] | None = {} if batch else None  # by index
        self.error = b""
        self._write_timeout_s = write_timeout_s
        self._response: web.StreamResponse | None = None
        self._part = b""
        self._tail = b""
        self._events = 0
        self.change: Callable[[bytes], bytes] | None = None
        self.first_s = 0.0
        self.last_s = 0.0

    @property
    def started(self) -> bool:
        """Whether the client may have got something."""
        return self._response is not None

    @property
    def response(self) -> web.StreamResponse | None:
        """What the client gets; None before it was begun."""
        return self._response

    def seen(self) -> None:
        """Bytes of content have come."""
        self.last_s = time.monotonic()
        self.first_s = self.first_s or self.last_s

    async def start(self, content_type: str, headers: dict[str, str]) -> None:
        response = web.StreamResponse(headers={**headers, "Content-Type": content_type})
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        if self._request.version < HttpVersion11:
            response.force_close()  # without chunks only its end tells the end of the stream
        self._response = response
        await self._within(response.prepare(self._request))

    async def pass_on(self, chunk: bytes) -> None:
        """Send a piece of the stream.

        Raises:
            SlowClientError: the client did not read for too long.
            ConnectionError: the client is gone.
        """
        if self._part:
            chunk = self._part + chunk
            self._part = b""
        if not chunk.endswith(b"\n\n"):
            cut = chunk.rfind(b"\n\n") + 2
            if cut < 2:
                cut = 0
            if len(chunk) - cut <= _MAX_EVENT:
                chunk, self._part = chunk[:cut], chunk[cut:]
        if not chunk:
            return
        self._events += chunk.count(b"\n\n")
        self.error = self.error or error_event(chunk)
        if self._counts is not None:
            for event in chunk.split(b"\n\n"):
                if b'"completion_tokens":' in event:
                    index = _INDEX.search(event)
                    tokens = usage_of(event, self._path).output_tokens
                    self._counts[int(index[1]) if index else 0] = tokens
        self._tail = chunk if len(chunk) >= _TAIL else (self._tail + chunk)[-_TAIL:]
        assert self._response is not None
        if self.change is not None:
            chunk = self.change(chunk)
        if not chunk:
            return
        await self._within(self._response.write(chunk))

    async def finish(self) -> web.StreamResponse:
        """End the answer."""
        assert self._response is not None
        await self._within(self._response.write_eof())
        return self._response

    async def break_off(self, error: bytes) -> web.StreamResponse:
        """End the answer with an error event, unless the server sent one."""
        assert self._response is not None
        if not self._told:
            await self._within(self._response.write(b"data: " + error + b"\n\n"))
        return await self.finish()

    @property
    def complete(self) -> bool:
        """Whether the stream came to its proper end."""
        end = self._tail.rstrip()
        if self._part.strip():
            return False
        if end.endswith(b"data: [DONE]"):
            return True
        return self._path == RESPONSES and response_end(end) != b""

    @property
    def aborted(self) -> bool:
        """Whether the server gave up and said so in its last events."""
        if self._path == RESPONSES:
            return response_end(self._tail) == b"failed"
        return is_aborted(self._tail, self._path)

    @property
    def _told(self) -> bool:
        """Whether the client knows from the server itself that it failed."""
        return bool(self.error) or (self._path == RESPONSES and self.aborted)

    @property
    def tokens(self) -> int:
        """Output tokens: as reported, else one per event."""
        known = sum((self._counts or {}).values())
        known = known or usage_of(self._tail, self._path).output_tokens
        return known or max(self._events - 1, 0)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens as reported; 0 where they are not."""
        return usage_of(self._tail, self._path).prompt_tokens

    async def _within(self, sending: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await sending
        except TimeoutError:
            raise SlowClientError from None


def looks_like_events(data: bytes) -> bool:
    """Whether the beginning of a stream is one of server-sent events."""
    return data.startswith(_STARTS)


def may_be_events(data: bytes) -> bool:
    """The same where so few bytes have come that more could tell."""
    return data.startswith(_STARTS) or any(start.startswith(data) for start in _STARTS)


def without_usage(events: bytes) -> bytes:
    """Whole events without those that report nothing but usage: the router asks for it, this client
    did not."""
    return b"".join(
        event + b"\n\n"
        for event in events.split(b"\n\n")
        if event.strip() and not (_NO_CHOICES.search(event) and b'"usage":' in event)
    )


def merge_logprobs(prefill: bytes, decode: bytes) -> bytes:
    """Put the prefill server's logprobs of the prompt in front of those of the decode server.

    Args:
        prefill, decode: whole answers of /generate, single or batch.
    """
    ours, theirs = orjson.loads(decode), orjson.loads(prefill)
    if not isinstance(ours, list):
        _merge(theirs, ours)
        return orjson.dumps(ours)
    for one, other in zip(theirs, ours, strict=True):
        _merge(one, other)
    return orjson.dumps(ours)


class LogprobMerge:
    """The same for a stream, event by event."""

    def __init__(self, prefill: bytes) -> None:
        self._first: dict[int, object] = {}
        for event in prefill.split(b"\n\n"):
            document = _document(event)
            if document is not None:
                self._first.setdefault(document.get("index", 0), document)

    def __call__(self, chunk: bytes) -> bytes:
        merged = []
        for event in chunk.split(b"\n\n"):
            document = _document(event)
            if document is not None:
                _merge(self._first.get(document.get("index", 0)), document)
                other = [line for line in event.split(b"\n") if not line.startswith(b"data:")]
                event = b"\n".join([*other, b"data: " + orjson.dumps(document)])
            merged.append(event)
        return b"\n\n".join(merged)


def _document(event: bytes) -> dict[str, Any] | None:
    """The object in the data line of an event; None for comments and the end of the stream."""
    lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
    text = lines[0].removeprefix(b"data:").strip() if len(lines) == 1 else b""
    if not text or text == b"[DONE]":
        return None
    document = orjson.loads(text)
    return document if isinstance(document, dict) else None


def _merge(prefill: object, decode: object) -> None:
    source = prefill.get("meta_info") if isinstance(prefill, dict) else None
    target = decode.get("meta_info") if isinstance(decode, dict) else None
    if not isinstance(source, dict) or not isinstance(target, dict):
        return
    for name in ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs"):
        if source.get(name) and name in target:
            target[name] = list(source[name]) + list(target[name] or [])
