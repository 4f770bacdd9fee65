"""A link between the router and a real server that breaks on demand, as a network does.

Only generations break; health checks and aborts go through, as long as the link is open. A reset
reaches both ends.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, not FIN


class Break(Enum):
    """Where the next answer is reset."""

    BEFORE_HEADERS = "before_headers"
    IN_HEADERS = "in_headers"
    IN_BODY = "in_body"


class FaultyLink:
    """Attributes:
    hold: generations are accepted and not passed on.
    break_at: where the next answer to a generation is reset.
    broken: answers that were.
    """

    def __init__(self, server_url: str) -> None:
        self.hold = False
        self.break_at: Break | None = None
        self.broken = 0
        self._server = urlsplit(server_url)
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._exchanges: set[_Exchange] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def held(self) -> int:
        """Generations that were not passed on."""
        return sum(exchange.held for exchange in self._exchanges)

    async def open(self) -> None:
        """Accept connections, always on the same port."""
        if self._listener is not None:
            return
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse connections until `open`; those that are open break."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for exchange in list(self._exchanges):
            exchange.reset()

    async def close(self) -> None:
        self.refuse()
        await asyncio.gather(*self._serving)

    def reset(self) -> None:
        """Reset the generations in flight."""
        for exchange in list(self._exchanges):
            if exchange.generation:
                exchange.reset()

    def silence(self) -> None:
        """Pass nothing more of the generations in flight, in either direction."""
        for exchange in self._exchanges:
            exchange.silent = exchange.generation

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._server.hostname, self._server.port
        try:
            server = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        exchange = _Exchange(self, writer, server[1])
        self._exchanges.add(exchange)
        ways = [
            asyncio.ensure_future(exchange.ask(reader)),
            asyncio.ensure_future(exchange.answer(server[0])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._exchanges.discard(exchange)
            writer.close()
            server[1].close()


class _Exchange:
    """One connection and its twin to the server; one request at a time.

    Attributes:
        generation: what it carries now.
    """

    def __init__(
        self, link: FaultyLink, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self.generation = False
        self.held = False
        self.silent = False
        self._link = link
        self._client = client
        self._server = server
        self._head = b""

    async def ask(self, reader: asyncio.StreamReader) -> None:
        """Pass requests on, until the router closes."""
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if data.startswith((b"GET ", b"POST ")):
                    self.generation = data.startswith(b"POST /generate ")
                    self.held = self.generation and self._link.hold
                    self._head = b""
                if not self.held and not self.silent:
                    self._server.write(data)
                    await self._server.drain()

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """Pass answers back, until the server closes."""
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.silent:
                    continue
                if self.generation and (passed := self._until_break(data)) is not None:
                    self._link.break_at = None
                    self._link.broken += 1
                    self._client.write(passed)
                    await asyncio.sleep(0.01)  # or the reset overtakes it
                    self.reset()
                    return
                self._client.write(data)
                await self._client.drain()

    def reset(self) -> None:
        for writer in (self._client, self._server):
            sock = writer.get_extra_info("socket")
            with suppress(OSError):  # it may be closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def _until_break(self, data: bytes) -> bytes | None:
        """What of a piece still passes; None if it does not break in this one."""
        begun_in = len(self._head)
        if _HEAD_END not in self._head:
            self._head += data
        head_end = self._head.find(_HEAD_END)
        match self._link.break_at:
            case Break.BEFORE_HEADERS:
                return b""
            case Break.IN_HEADERS if not begun_in:
                return data[:20]
            case Break.IN_BODY if head_end >= 0:
                body_at = max(head_end + len(_HEAD_END) - begun_in, 0)
                size = len(data) - body_at
                return data[: body_at + size // 2] if size > 0 else None
        return None


@asynccontextmanager
async def linked(server_url: str) -> AsyncIterator[FaultyLink]:
    """An open link to a server."""
    link = FaultyLink(server_url)
    await link.open()
    try:
        yield link
    finally:
        await link.close()
