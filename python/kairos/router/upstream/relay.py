"""The answer's way to the client: bytes as they are, in whole events, within bounds."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, web

from kairos.router.paths import RESPONSES
from kairos.router.request.context import Answer
from kairos.router.upstream.engine_answer import (
    error_event,
    is_aborted,
    response_end,
    usage_names,
    usage_of,
)
from kairos.router.upstream.leg import LegError
from kairos.router.workers.endpoint import Role

MAX_EVENT_BYTES = 64 << 20
_AT_ONCE_BYTES = 32 << 10  # what an empty buffer takes without waiting
_END = b"\n\n"
_STARTS = (b"data:", b"event:", b"id:", b":", b"retry:")
_INDEX = re.compile(rb'"index":\s*(\d{1,9})')
_DATA = re.compile(rb"^data:", re.MULTILINE)


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
        first_s: when the first bytes came, monotonic seconds; 0 before.
    """

    __slots__ = (
        "_aborted",
        "_counts",
        "_events",
        "_last",
        "_last_s",
        "_output_name",
        "_part",
        "_path",
        "_prompt_name",
        "_request",
        "_response",
        "_response_end",
        "_with_output_tokens",
        "_with_prompt_tokens",
        "_write_timeout_s",
        "change",
        "error",
        "first_s",
    )

    def __init__(
        self, request: web.BaseRequest, write_timeout_s: float, path: str, batch: bool = False
    ) -> None:
        self._request = request
        self._path = path
        self._counts: dict[int, int] | None = {} if batch else None  # by index
        self.error = b""
        self._write_timeout_s = write_timeout_s
        self._response: web.StreamResponse | None = None
        self._part = bytearray()
        self._last = b""  # the last events
        self._prompt_name, self._output_name = usage_names(path)
        self._with_prompt_tokens = b""  # the last events that report them
        self._with_output_tokens = b""
        self._response_end = b""
        self._aborted = False
        self._events = 0
        self.change: Callable[[bytes], bytes] | None = None
        self.first_s = 0.0
        self._last_s = 0.0

    @property
    def started(self) -> bool:
        """Whether the client may have got something."""
        return self._response is not None

    def seen(self) -> None:
        """Bytes of content have come."""
        self._last_s = time.monotonic()
        self.first_s = self.first_s or self._last_s

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
        events = self._whole_events(chunk)
        if not events:
            return
        self._note(events)
        if self.change is not None:
            events = self.change(events)
        if events:
            assert self._response is not None
            await self._within(self._response.write(events), len(events))

    def _whole_events(self, chunk: bytes) -> bytes:
        """Take the whole events out of what has come, and keep the rest.

        Raises:
            LegError: an event is too long.
        """
        part = self._part
        if not part and _whole(chunk, 0) == len(chunk):
            return chunk  # nearly always; nothing is copied
        searched = max(len(part) - 1, 0)
        part += chunk
        end = _whole(part, searched)
        if len(part) - end > MAX_EVENT_BYTES:
            text = f"the decode server sent an event of more than {MAX_EVENT_BYTES} bytes"
            raise LegError(Role.DECODE, "garbage", text)
        events = bytes(part[:end])
        del part[:end]
        return events

    def _note(self, events: bytes) -> None:
        """Keep what the stream is judged by. Whole events come, however they were cut."""
        self._events += events.count(b"\ndata:") + events.startswith(b"data:")
        if not self.error and b'"error":' in events:
            self.error = error_event(events)
        if not events.isspace():
            self._last = events
        # Parsed at the end only.
        if self._prompt_name in events:
            self._with_prompt_tokens = events
        if self._output_name in events:
            self._with_output_tokens = events
        if self._path == RESPONSES:
            self._response_end = response_end(events) or self._response_end
        elif b'"abort"' in events:
            self._aborted = self._aborted or is_aborted(events, self._path)
        if self._counts is not None:
            for event in events.split(_END):
                if b'"completion_tokens":' in event:
                    index = _INDEX.search(event)
                    tokens = usage_of(event, self._path).output_tokens
                    self._counts[int(index[1]) if index else 0] = tokens or 0

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
        if self._part.strip():
            return False
        text = self._last.strip()
        if text[text.rfind(_END) + 1 :].lstrip() == b"data: [DONE]":
            return True
        return self._response_end != b""

    @property
    def aborted(self) -> bool:
        """Whether the server gave up and said so."""
        return self._aborted or self._response_end == b"failed"

    @property
    def _told(self) -> bool:
        """Whether the client knows from the server itself that it failed."""
        return bool(self.error) or (self._path == RESPONSES and self.aborted)

    @property
    def answer(self) -> Answer:
        """The part of the answer that the client has received."""
        return Answer(self.first_s, self._last_s, self.tokens)

    @property
    def tokens(self) -> int:
        """Output tokens: as reported, else one per event."""
        if self._counts:
            return sum(self._counts.values())
        reported = usage_of(self._with_output_tokens, self._path).output_tokens
        return max(self._events - 1, 0) if reported is None else reported

    @property
    def prompt_tokens(self) -> int | None:
        """Prompt tokens as reported; None where they are not."""
        return usage_of(self._with_prompt_tokens, self._path).prompt_tokens

    async def _within(self, sending: Awaitable[object], size: int = 0) -> None:
        transport = self._request.transport
        if size < _AT_ONCE_BYTES and transport and not transport.get_write_buffer_size():
            await sending  # a piece for an empty buffer waits for no client
            return
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await sending
        except TimeoutError:
            raise SlowClientError from None


def _whole(events: bytes | bytearray, searched: int) -> int:
    """Return where the last whole event ends; 0 where none does.

    The last of an odd run of line ends belongs to the following event, as if events had been taken
    one by one.

    Args:
        searched: no event ends before it.
    """
    end = events.rfind(_END, searched) + 2
    if end < 2:
        return 0
    run = end
    while run and events[run - 1] == 0x0A:
        run -= 1
    return end - (end - run) % 2


def first_event(data: bytes | bytearray) -> int:
    """Where the first event with data in it ends; 0 where it is not whole."""
    begin = 0
    while (end := data.find(_END, begin)) >= 0:
        if _DATA.search(data, begin, end):
            return end + 2
        begin = end + 2
    return 0


def looks_like_events(data: bytes | bytearray) -> bool:
    """Whether the beginning of a stream is one of server-sent events."""
    return data.startswith(_STARTS)


def may_be_events(data: bytes | bytearray) -> bool:
    """The same where so few bytes have come that more could tell."""
    return data.startswith(_STARTS) or any(start.startswith(data) for start in _STARTS)
