"""Token times from an SGLang /generate event stream."""

from array import array
from typing import Any

import orjson

_END = b"\n\n"
_PREFIX = b"data:"
_MAX_EVENT_BYTES = 64 * 1024 * 1024


class StreamError(Exception):
    """The server answered with something that is not a token stream, or with an error event."""


class TokenStream:
    """Feeds on bytes as they arrive and stamps every token.

    Events carry the number of tokens so far, so it does not matter whether the server sends all
    ids each time or only the new ones (`--incremental-streaming-output`, which costs less).
    Several tokens in one event get the same time: the client could not have them earlier.

    Args:
        limit: tokens asked for; a server that reports more is in error.

    Attributes:
        times: clock readings, one per token.
        cached_tokens: prefix hit the server reports, None before the first event.
        finish: the server's finish reason, None until the stream ended with one.
        done: the closing event was seen.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.times = array("d")
        self.cached_tokens: int | None = None
        self.finish: dict[str, Any] | None = None
        self.done = False
        self._pending = bytearray()

    def feed(self, data: bytes, now: float) -> None:
        """Take `data` that arrived at `now`, in any cut.

        Raises:
            StreamError: malformed or error event.
        """
        # Searching from the last byte finds a separator that the cut went through, and never
        # looks at an unfinished event twice.
        start = max(0, len(self._pending) - 1)
        self._pending += data
        end = self._pending.rfind(_END, start)
        if end < 0:
            if len(self._pending) > _MAX_EVENT_BYTES:
                raise StreamError(f"an event longer than {_MAX_EVENT_BYTES} bytes")
            return
        events = bytes(self._pending[:end])
        del self._pending[: end + len(_END)]
        for event in events.split(_END):
            if event:
                self._event(event, now)

    def close(self) -> None:
        """The connection ended.

        Raises:
            StreamError: bytes are left that are no complete event, for example an error body.
        """
        if self._pending.strip():
            raise StreamError(f"stream ended with {_shown(bytes(self._pending))}")

    def _event(self, event: bytes, now: float) -> None:
        if not event.startswith(_PREFIX):
            raise StreamError(f"not an event: {_shown(event)}")
        body = event[len(_PREFIX) :].strip()
        if body == b"[DONE]":
            self.done = True
            return
        try:
            fields = orjson.loads(body)
            if "error" in fields:
                raise StreamError(f"error event: {_shown(orjson.dumps(fields['error']))}")
            meta = fields["meta_info"]
            count = meta["completion_tokens"]
            finish = meta["finish_reason"]
            new = int(count) - len(self.times)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise StreamError(f"not a token event: {_shown(body)}") from error
        if new + len(self.times) > self._limit:
            raise StreamError(f"{count} tokens, {self._limit} were asked for")
        if self.cached_tokens is None:
            self.cached_tokens = meta.get("cached_tokens")
        if finish is not None:
            self.finish = finish if isinstance(finish, dict) else {"type": str(finish)}
        if new > 0:
            self.times.extend([now] * new)


def _shown(data: bytes) -> str:
    return ascii(data[:200].decode("utf-8", "replace"))
