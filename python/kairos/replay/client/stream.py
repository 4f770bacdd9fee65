"""Token times from an event stream: SGLang's own, or that of an OpenAI completion."""

from array import array
from typing import Any

import orjson

_END = b"\n\n"
_PREFIX = b"data:"
_FIELDS = (_PREFIX, b"event:", b"id:", b"retry:", b":")  # the last begins a comment
_MAX_EVENT_BYTES = 64 * 1024 * 1024


class StreamError(Exception):
    """The response is no token stream, or an error event came in it."""


class TokenStream:
    """Reads the event stream of SGLang's `/generate` and stamps every token.

    Events carry the number of tokens so far. The server may therefore send all ids each time, or
    only the new ones (`--incremental-streaming-output`, which costs less). All tokens of one event
    get the same time, because the client could not have received them earlier.

    Attributes:
        times: monotonic arrival times in seconds, one per token.
        prompt_tokens: prompt length that the server reports; None until it reports one.
        cached_tokens: prefix hit that the server reports; None until it reports one.
        finish: finish reason of the server; None until the stream ended with one.
        done: whether the closing event has arrived.
    """

    def __init__(self, limit: int) -> None:
        """Create a reader.

        Args:
            limit: tokens requested; a server that reports more is in error.
        """
        self._limit = limit
        self.times = array("d")
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.finish: dict[str, Any] | None = None
        self.done = False
        self._pending = b""

    def feed(self, data: bytes, now: float) -> None:
        """Read `data` that arrived at `now`, cut anywhere. Lines may end with CR LF.

        Raises:
            StreamError: malformed or error event.
        """
        if self._pending[-1:] == b"\r" or b"\r" in data:
            # JSON has no line ends of its own. A CR at the end may be half of one.
            data = self._pending + data
            half = b"\r" if data.endswith(b"\r") else b""
            data = data.removesuffix(b"\r").replace(b"\r\n", b"\n") + half
            start = 0
        elif self._pending:
            # The search begins at the last byte: it finds a separator that was cut in two, and
            # scans an unfinished event only once.
            start = len(self._pending) - 1
            data = self._pending + data
        else:
            start = 0
        end = data.rfind(_END, start)
        if end < 0:
            if len(data) > _MAX_EVENT_BYTES:
                raise StreamError(f"an event longer than {_MAX_EVENT_BYTES} bytes")
            self._pending = data
            return
        self._pending = data[end + len(_END) :]
        for event in data[:end].split(_END):
            if event:
                self._event(event, now)

    def close(self) -> None:
        """Check the stream at the end of the connection.

        Raises:
            StreamError: the remaining bytes are no complete event, for example an error body, or
                more tokens arrived than were requested.
        """
        if self._pending.strip():
            raise StreamError(f"stream ended with {_shown(self._pending)}")

    def settle(self) -> None:
        """Complete `times` after the last byte.

        It raises nothing: records are written after the run, when an error would lose all of them.
        """

    def _event(self, event: bytes, now: float) -> None:
        if not event.startswith(_PREFIX):
            fields = event.split(b"\n")
            if not all(field.startswith(_FIELDS) for field in fields):
                raise StreamError(f"not an event: {_shown(event)}")
            event = next((field for field in fields if field.startswith(_PREFIX)), b"")
            if not event:
                return
        body = event[len(_PREFIX) :].strip()
        if body == b"[DONE]":
            self.done = True
            return
        try:
            fields = orjson.loads(body)
            if "error" in fields:
                raise StreamError(f"error event: {_shown(orjson.dumps(fields['error']))}")
            self._take(fields, now)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise StreamError(f"not a token event: {_shown(body)}") from error

    def _take(self, fields: Any, now: float) -> None:
        meta = fields["meta_info"]
        count = int(meta["completion_tokens"])
        finish = meta["finish_reason"]
        if self.prompt_tokens is None and meta.get("prompt_tokens") is not None:
            self.prompt_tokens = int(meta["prompt_tokens"])
        if self.cached_tokens is None and meta.get("cached_tokens") is not None:
            self.cached_tokens = int(meta["cached_tokens"])
        if finish is not None:
            self.finish = finish if isinstance(finish, dict) else {"type": str(finish)}
        self._count(count, now)

    def _count(self, count: int, now: float) -> None:
        self._check(count)
        new = count - len(self.times)
        if new > 0:
            self.times.extend([now] * new)

    def _check(self, count: int) -> None:
        if count > self._limit:
            raise StreamError(f"{count} tokens, {self._limit} were requested")


class CompletionStream(TokenStream):
    """Reads the event stream of `/v1/completions`.

    A chunk holds one token or several. Some servers send usage, and with it the token count, in
    every chunk. For other servers each chunk with text counts as one token, until usage arrives at
    the end of the stream. The tokens are then spread evenly over the chunks, which keeps the first
    and the last time exact.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._chunks = array("d")
        self._has_counts = False

    def _take(self, fields: Any, now: float) -> None:
        choices = fields["choices"]
        usage = fields.get("usage") or {}
        if usage.get("prompt_tokens") is not None:
            self.prompt_tokens = int(usage["prompt_tokens"])
        details = usage.get("prompt_tokens_details") or {}
        if details.get("cached_tokens") is not None:
            self.cached_tokens = int(details["cached_tokens"])
        count = usage.get("completion_tokens")
        if choices:
            choice = choices[0]
            if choice.get("finish_reason"):
                self.finish = {"type": str(choice["finish_reason"])}
            if count is not None and not self._chunks:
                self._has_counts = True
                self._count(int(count), now)
                return
            if choice.get("text"):
                self._chunks.append(now)
        if count is not None and not self._has_counts:
            self._check(int(count))
            self._spread(int(count))

    def close(self) -> None:
        super().close()
        if not self.times:
            self._check(len(self._chunks))

    def settle(self) -> None:
        if not self.times:
            self._spread(min(len(self._chunks), self._limit))

    def _spread(self, tokens: int) -> None:
        """Spread `tokens` over the arrival times of the chunks."""
        chunks = len(self._chunks)
        if not chunks:
            return
        self.times = array("d")
        for i, now in enumerate(self._chunks, 1):
            share = max(1 if i == 1 else 0, tokens * i // chunks)
            self.times.extend([now] * (min(share, tokens) - len(self.times)))


def _shown(data: bytes) -> str:
    return ascii(data[:200].decode("utf-8", "replace"))
