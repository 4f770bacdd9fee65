"""No request holds the event loop for longer than others may wait."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import pytest

from kairos.router.config.settings import Limits
from kairos.router.paths import CHAT, GENERATE
from kairos.router.request.parsing import MAX_ELEMENTS
from support.router_instant import Instant
from support.router_running import Running, config_for, running

pytestmark = pytest.mark.alone  # coverage slows the loop, but not what it is compared with

LONGEST_S = 0.05
# CPU time of `calibration` on the machine that LONGEST_S is meant for.
CALIBRATION_S = 0.0104
SIZE = Limits().max_body_bytes - 100
PATHS = {"messages": CHAT}


def listed(start: bytes, one: bytes, cost: int) -> bytes:
    """As many values as a body may hold, or as fit."""
    count = min((MAX_ELEMENTS - 100) // cost, SIZE // (len(one) + 1) - 10)
    return start + b",".join([one] * count) + b"]}"


def text(piece: bytes, per_element: int = 0) -> bytes:
    count = min(SIZE // len(piece), MAX_ELEMENTS * per_element - 1000 if per_element else SIZE)
    return b'{"text":"' + piece * count + b'"}'


# Each is near the limit of bytes or of values, whichever comes first.
BODIES = {
    "text": text(b"x"),
    "text beyond ASCII": text("é123456".encode()),
    "line ends": text(b"\\n", 10),
    "quotes": text(b'x\\"', 10),
    "control characters": text(b"\\u0001", 10),
    "ids": listed(b'{"input_ids":[', b"123456", 1),
    "floats": listed(b'{"text":"a","x":[', b"-1.2345678901234567e-05", 1),
    "strings": listed(b'{"text":"a","x":[', b'"abcdefghijkl"', 1),
    "objects": listed(b'{"text":"a","x":[', b"{}", 13),
    "lists": listed(b'{"text":"a","x":[', b"[]", 11),
    "messages": listed(b'{"messages":[', b'{"role":"user","content":"hi"}', 22),
    "keys": b'{"text":"a","x":{'
    + b",".join(b'"k%d":%d' % (n, n) for n in range(MAX_ELEMENTS // 5 - 100))
    + b"}}",
}


@pytest.fixture(scope="module")
def servers() -> Iterator[SimpleNamespace]:
    """A server of each role on a loop of their own, so that only the router's work is measured."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen() -> asyncio.Server:
        return await loop.create_server(lambda: Instant(2, 0.0), "127.0.0.1", 0)

    async def close() -> None:
        for server in started:
            server.close()

    started = [asyncio.run_coroutine_threadsafe(listen(), loop).result(10.0) for _ in range(2)]
    ports = [server.sockets[0].getsockname()[1] for server in started]
    prefill, decode = (
        SimpleNamespace(url=f"http://127.0.0.1:{p}", bootstrap_port=1) for p in ports
    )
    yield SimpleNamespace(prefill=[prefill], decode=[decode])
    asyncio.run_coroutine_threadsafe(close(), loop).result(10.0)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10.0)
    loop.close()


@pytest.fixture
async def up(servers: SimpleNamespace) -> AsyncIterator[Running]:
    async with running(config_for(servers)) as up:
        yield up


class Probe:
    """The longest turn of the event loop, in CPU time of its thread, which other processes do not
    lengthen."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last_s = time.thread_time()
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        now_s = time.thread_time()
        self.longest_s = max(self.longest_s, now_s - self._last_s)
        self._last_s = now_s
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> float:
        self._handle.cancel()
        return self.longest_s


def calibration() -> float:
    """CPU time of a fixed piece of work, seconds."""
    begun_s = time.thread_time()
    b",".join([b"%d" % n for n in range(100_000)])
    return time.thread_time() - begun_s


async def asked(up: Running, path: str, body: bytes) -> tuple[int, float]:
    """Status of the answer, and the longest turn of the loop."""
    host, port = up.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    probe = Probe()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n")
    for at in range(0, len(body), 1 << 18):
        writer.write(body[at : at + (1 << 18)])
        await writer.drain()
    answer = await reader.read()
    longest_s = probe.stop()
    writer.close()
    return int(answer.split(b" ", 2)[1]), longest_s


@pytest.mark.parametrize("name", BODIES)
async def test_the_worst_bodies_that_are_accepted_hold_the_loop_briefly(
    up: Running, name: str
) -> None:
    limit_s = LONGEST_S * min(calibration() for _ in range(10)) / CALIBRATION_S
    turns = []
    for _ in range(2):
        status, longest_s = await asked(up, PATHS.get(name, GENERATE), BODIES[name])
        assert status == 200
        turns.append(longest_s)
    print(f"{name}: {min(turns) * 1e3:.0f} ms; allowed are {limit_s * 1e3:.0f} ms")
    assert min(turns) < limit_s
