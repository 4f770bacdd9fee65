"""Parsing of one HTTP/1.1 response, in whatever pieces it arrives."""

from collections.abc import Callable

import httptools

_MAX_HEAD_BYTES = 64 * 1024
_SHOWN_BYTES = 80


class HttpResponseError(Exception):
    """The bytes are no HTTP/1.1 response, or end before it does."""


class HttpResponseParser:
    """Parser of a response, which passes each piece of the body on as it arrives.

    Interim responses (status 1xx) are skipped. Bytes behind the end of the response are ignored.

    Attributes:
        status: status code; 0 until the head of the final response is complete.
        headers: values by lower-case name; the last value of a repeated name.
        complete: whether the response has ended.
        reusable: whether the connection can carry another exchange afterwards.
    """

    __slots__ = ("_forward", "_head_bytes", "_parser", "complete", "headers", "reusable", "status")

    def __init__(self, on_body: Callable[[bytes], None]) -> None:
        """Create a parser.

        Args:
            on_body: receives each piece of the body without its framing. An exception that it
                raises leaves `feed` unchanged.
        """
        self._forward = on_body
        self._parser = httptools.HttpResponseParser(self)
        self.restart()

    def restart(self) -> None:
        """Begin with the next response of a connection that is reusable."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.reusable = False
        self._head_bytes = 0

    def feed(self, data: bytes) -> None:
        """Parse bytes, cut anywhere.

        Raises:
            HttpResponseError: malformed response, or a head above 64 KiB.
        """
        if self.complete:
            return
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserUpgrade:
            raise HttpResponseError("the server switched to another protocol") from None
        except httptools.HttpParserError as error:
            if self.complete:
                self.reusable = False
                return
            if self.status:
                raise HttpResponseError(f"malformed response body: {error}") from None
            shown = ascii(data[:_SHOWN_BYTES])
            raise HttpResponseError(f"not an HTTP/1.1 response: {shown} ({error})") from None
        if not self.status and self._head_bytes > _MAX_HEAD_BYTES:
            raise HttpResponseError(f"a response head without an end in {_MAX_HEAD_BYTES} bytes")

    def end(self) -> None:
        """Take note that the connection has ended.

        Raises:
            HttpResponseError: it ended in the middle of the response.
        """
        if not self.complete and not (self.status and self._ends_with_connection):
            raise HttpResponseError(
                "the server closed the connection in the middle of the response"
            )
        self.complete = True

    @property
    def _ends_with_connection(self) -> bool:
        """Whether the body has no framing of its own."""
        return not {"content-length", "transfer-encoding"} & self.headers.keys()

    # Callbacks of httptools.

    def on_message_begin(self) -> None:
        """Note a second response, which was not asked for."""
        if self.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        if self.complete:
            return
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        """Publish the status of a final response."""
        if self.complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()
            self._head_bytes = 0
        else:
            self.status = status

    def on_body(self, data: bytes) -> None:
        """Pass a piece of the body on."""
        if not self.complete:
            self._forward(data)

    def on_message_complete(self) -> None:
        """Note the end of a final response."""
        if self.status and not self.complete:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()
