"""The beginning of client connections: what aiohttp leaves open, over real sockets."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientConnectorCertificateError, ClientError, ClientSession, web

from kairos.errors import InputError
from kairos.router.config.settings import Limits, Listen, RouterConfig, Security, Timeouts, Workers
from kairos.router.edge import tls
from kairos.router.edge.client_connection import protocol_factory
from kairos.router.edge.errors import RequestError
from kairos.router.edge.limits import check_headers
from kairos.router.edge.listener import ConnectionCount, Listener
from kairos.router.workers.endpoint import WorkerEndpoint

WORKERS = Workers(
    prefill=(WorkerEndpoint("prefill", "http://a:1"),),
    decode=(WorkerEndpoint("decode", "http://b:1"),),
)
HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"


class Server:
    """A server with the router's connections and a handler that checks headers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.refused: list[str] = []
        self.open = 0
        self.handled = 0

    async def talk(self, *parts: bytes) -> bytes:
        """Send parts, one after the other; what comes back until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            async with asyncio.timeout(30):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None, **groups: object) -> AsyncIterator[Server]:
    config = RouterConfig(workers=WORKERS, **groups)
    server = Server(0)

    async def handle(request: web.Request) -> web.Response:
        try:
            check_headers(request.raw_headers, config.limits)
        except RequestError as refused:
            return web.Response(status=refused.status, text=refused.reason)
        server.handled += 1
        if request.path == "/long":
            return web.Response(body=bytes(32 << 20))
        return web.Response(text=str(len(await request.read())))

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()

    def changed(number: int) -> None:
        server.open = number

    refused = server.refused.append
    count = ConnectionCount(config.limits.max_connections, changed, refused)
    make = protocol_factory(runner.server, config, refused, count)
    listening = Listener(make, "127.0.0.1", 0, count, context)
    server.port = listening.port
    try:
        yield server
    finally:
        listening.close()
        await runner.cleanup()
    assert server.open == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
        HEAD + b"Content-Length: +3\r\n\r\nabc",
        HEAD + b"Content-Length: -3\r\n\r\nabc",
        HEAD + b"Content-Length : 3\r\n\r\nabc",
        HEAD + b"Content_Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Host: b\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Authorization: a\r\nAuthorization: b\r\nContent-Length: 0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /x HTTP/1.1\nHost: a\n\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00",
    ],
)
async def test_what_two_parsers_could_read_differently_is_refused(request_bytes: bytes) -> None:
    async with serving(timeouts=Timeouts(header_timeout_s=0.2)) as server:
        answer = await server.talk(
            request_bytes.replace(b"Host: a\r\n", b"Host: a\r\nConnection: close\r\n", 1)
        )
        assert answer.split(b" ", 2)[1] == b"400"
        assert server.handled == 0


async def test_a_refusal_of_the_parser_is_counted_and_echoes_nothing() -> None:
    async with serving() as server:
        answer = await server.talk(b"GET /<script> HTTP/9.9\r\nsecret: 1\r\n\r\n")
        assert b'"code":"http_malformed"' in answer
        assert b"secret" not in answer
        assert b"script" not in answer
        assert server.refused == ["http_malformed"]


@pytest.mark.parametrize(
    "lines", [b"X: %b\r\n" % (b"a" * 20_000), b"X: a\r\n" * 101, b"X%b: a\r\n" % (b"a" * 20_000)]
)
async def test_too_many_or_too_long_header_lines_are_431(lines: bytes) -> None:
    async with serving() as server:
        answer = await server.talk(HEAD + lines + b"\r\n")
        assert answer.startswith(b"HTTP/1.")
        assert answer.split(b" ", 2)[1] == b"431"
        assert server.refused == ["headers_large"]


async def test_header_lines_that_trickle_in_are_cut_off() -> None:
    async with serving(timeouts=Timeouts(header_timeout_s=0.1)) as server:
        # The limit holds from the first byte, whatever follows it.
        trickle = [b"X: a\r\n"] * 100
        assert await server.talk(HEAD, *trickle) == b""
        assert server.refused == ["headers_slow"]
        assert server.handled == 0


async def test_the_limit_holds_for_each_request_of_a_connection_and_not_for_pauses() -> None:
    async with serving(timeouts=Timeouts(header_timeout_s=0.1)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(2):
            writer.write(HEAD + b"Content-Length: 1\r\n\r\nx")
            assert (await reader.readuntil(b"\r\n\r\n1")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.2)  # idle between requests is no offence
        assert server.refused == []
        writer.write(b"POST")
        assert await asyncio.wait_for(reader.read(), 30) == b""
        assert server.refused == ["headers_slow"]
        writer.close()


async def test_connections_are_bounded() -> None:
    async with serving(limits=Limits(max_connections=2)) as server:
        kept = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        while server.open < 2:
            await asyncio.sleep(0.01)
        assert await server.talk(HEAD + b"\r\n") == b""
        assert server.refused == ["connections"]
        for _, writer in kept:
            writer.close()
        while server.open:
            await asyncio.sleep(0.01)
        assert b"200" in await server.talk(HEAD + b"Connection: close\r\n\r\n")


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> tuple[trustme.CA, Path]:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, path


def issued(ca: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    leaf = ca.issue_cert(name)
    cert, key = folder / f"{name}.cert", folder / f"{name}.key"
    leaf.private_key_pem.write_to_path(key)
    for i, blob in enumerate(leaf.cert_chain_pems):
        blob.write_to_path(cert, append=i > 0)
    return cert, key


async def fetch(port: int, context: ssl.SSLContext) -> str:
    async with (
        ClientSession() as session,
        session.post(f"https://127.0.0.1:{port}/x", data=b"abc", ssl=context) as answer,
    ):
        return await answer.text()


async def test_tls_in_and_mutual_tls_out(authority, tmp_path: Path) -> None:
    ca, ca_path = authority
    cert, key = issued(ca, tmp_path, "127.0.0.1")
    mine, mine_key = issued(ca, tmp_path, "router.example")
    listen = Listen(tls_cert=cert, tls_key=key, tls_client_ca=ca_path)
    with_cert = tls.client_context(
        Security(engine_ca=ca_path, engine_cert=mine, engine_cert_key=mine_key)
    )
    async with serving(tls.server_context(listen)) as server:
        assert await fetch(server.port, with_cert) == "3"
        # With TLS 1.3 a client learns of its refusal when it reads.
        with pytest.raises((ClientError, OSError)):
            await fetch(server.port, tls.client_context(Security(engine_ca=ca_path)))
        with pytest.raises(ClientConnectorCertificateError):
            await fetch(server.port, tls.client_context(Security()))


async def test_a_renewed_certificate_is_taken_and_a_bad_one_refused(
    authority, tmp_path: Path
) -> None:
    ca, _ = authority
    cert, key = issued(ca, tmp_path, "127.0.0.1")
    listen = Listen(tls_cert=cert, tls_key=key)
    context = tls.server_context(listen)
    renewed = trustme.CA()
    renewed_path = tmp_path / "renewed.pem"
    renewed.cert_pem.write_to_path(renewed_path)
    trusts_renewed = tls.client_context(Security(engine_ca=renewed_path))
    async with serving(context) as server:
        with pytest.raises(ClientConnectorCertificateError):
            await fetch(server.port, trusts_renewed)
        issued(renewed, tmp_path, "127.0.0.1")
        assert tls.reload_certificate(context, listen) is None
        assert await fetch(server.port, trusts_renewed) == "3"
        key.write_text("garbage")
        assert "--tls-cert, --tls-key" in tls.reload_certificate(context, listen)
        assert await fetch(server.port, trusts_renewed) == "3"


def test_bad_files_are_named(authority, tmp_path: Path) -> None:
    ca, _ = authority
    cert, _ = issued(ca, tmp_path, "127.0.0.1")
    _, other_key = issued(ca, tmp_path, "other.example")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    for listen, flag in (
        (Listen(tls_cert=cert, tls_key=other_key), "--tls-cert, --tls-key"),
        (Listen(tls_cert=junk, tls_key=junk), "--tls-cert, --tls-key"),
        (Listen(tls_cert=cert, tls_key=tmp_path / "127.0.0.1.key", tls_client_ca=junk),
         "--tls-client-ca"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=flag):
            tls.server_context(listen)
    with pytest.raises(InputError, match="--engine-ca"):
        tls.client_context(Security(engine_ca=junk))


async def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    async with serving(timeouts=Timeouts(write_timeout_s=0.2)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
        # The reader's own buffer is small, and nobody empties it.
        async with asyncio.timeout(30):
            while not server.handled or server.open:
                await asyncio.sleep(0.01)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(32 << 20)
        writer.close()


async def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    async with serving(timeouts=Timeouts(write_timeout_s=0.2)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /long HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        size = 0
        while data := await reader.read(1 << 20):
            size += len(data)
            await asyncio.sleep(0.005)
        assert b" 200 " in head
        assert size == 32 << 20
        writer.close()
