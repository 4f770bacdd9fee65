"""Load on a router: connections that send the same request repeatedly, and open streams."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import msgspec

from kairos.extras import bench_extra

OUTPUT_TOKENS = 64
WHOLE = b'{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":1},"stream":false}'
STREAM = b'{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":64},"stream":true}'
_OPENED_TOGETHER = 200
_FIRST_EVENT_LIMIT_S = 30.0


class LoadFigures(msgspec.Struct, omit_defaults=True):
    """Figures of one load.

    Attributes:
        requests_per_s: requests that ended, per second.
        chunks_per_s: events of streams, per second.
        first_p50_ms, first_p99_ms: time to the first byte of a body.
        total_p50_ms, total_p99_ms: time to the end of an answer.
        requests: requests that ended.
        failed: connections that were lost, and answers with another status than 200.
        timed_out: connections that did not end in time.
        gap_p50_ms, gap_p99_ms: time between two events of a stream.
        bunched_percent: events that arrive together with the one before.
        problem: start of the last answer that failed.
        cpu_us_per_request: processor time of the router.
    """

    requests_per_s: float
    chunks_per_s: int
    first_p50_ms: float | None
    first_p99_ms: float | None
    total_p50_ms: float | None
    total_p99_ms: float | None
    requests: int
    failed: int
    timed_out: int
    gap_p50_ms: float | None
    gap_p99_ms: float | None
    bunched_percent: float | None
    problem: str = ""
    cpu_us_per_request: int | None = None


class IdleFigures(msgspec.Struct, omit_defaults=True):
    """Memory of open streams.

    Attributes:
        streams: streams that were opened.
        kib_per_stream: resident memory of the router per stream.
        problem: why not all were opened.
    """

    streams: int
    kib_per_stream: float | None = None
    problem: str = ""


@dataclass
class LoadResult:
    """Times of one load, in seconds, and its counts."""

    first_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    events: int = 0
    failed: int = 0
    timed_out: int = 0
    problem: str = ""

    def figures(self, seconds: float) -> LoadFigures:
        """Return the figures of a load of this duration."""
        first, total = sorted(self.first_s), sorted(self.total_s)
        gaps = sorted(self.gaps_s)
        return LoadFigures(
            requests_per_s=round(len(total) / seconds, 1),
            chunks_per_s=round(self.events / seconds),
            first_p50_ms=_ms(first, 0.5),
            first_p99_ms=_ms(first, 0.99),
            total_p50_ms=_ms(total, 0.5),
            total_p99_ms=_ms(total, 0.99),
            requests=len(total),
            failed=self.failed,
            timed_out=self.timed_out,
            gap_p50_ms=_ms(gaps, 0.5),
            gap_p99_ms=_ms(gaps, 0.99),
            bunched_percent=round(100.0 * gaps.count(0.0) / len(gaps), 2) if gaps else None,
            problem=self.problem,
        )


class LoadConnection(asyncio.Protocol):
    """One connection that sends a request, reads its answer, and sends it again.

    Args:
        request: head and body.
        result: receives times and counts.
        until_s: `time.perf_counter` at which no further request is sent.

    Attributes:
        done: set at the end.
    """

    def __init__(self, request: bytes, result: LoadResult, until_s: float) -> None:
        self._request = request
        self._result = result
        self._until_s = until_s
        self._begun_s = 0.0
        self._first = True
        self._tail = b""
        self._need = 0
        self._chunked = False
        self._event_s = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        # uvloop's transports write, but do not inherit from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a connection that ends before its answer as failed."""
        if not self.done.done():
            self._result.failed += 1
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Read a part of an answer, and send the next request after its end."""
        if self._first:
            body = self._head_received(data)
            if body is None:
                return
            data = body
        elif self._chunked and (events := data.count(b"data: {")):
            now = time.perf_counter()
            self._result.events += events
            self._result.gaps_s += [now - self._event_s] + [0.0] * (events - 1)
            self._event_s = now
        if not self._body_ended(data):
            return
        self._result.total_s.append(time.perf_counter() - self._begun_s)
        if time.perf_counter() >= self._until_s:
            self.done.set_result(None)
            self._transport.close()
        else:
            self._send()

    def _head_received(self, data: bytes) -> bytes | None:
        """Return the first bytes of the body; None before they are here."""
        self._tail += data
        head, found, rest = self._tail.partition(b"\r\n\r\n")
        if not found:
            return None
        lower = head.lower()
        if not head.startswith(b"HTTP/1.1 200"):
            self._result.failed += 1
            self._result.problem = head[:60].decode("latin-1")
        self._chunked = b"chunked" in lower
        if not self._chunked:
            at = lower.find(b"content-length:")
            self._need = int(lower[at + 15 :].split(b"\r\n", 1)[0])
        if self._chunked and not rest:
            self._tail = head + found
            return None
        self._first = False
        self._event_s = time.perf_counter()
        self._result.first_s.append(self._event_s - self._begun_s)
        self._tail = b""
        self._result.events += rest.count(b"data: {")
        return rest

    def _body_ended(self, data: bytes) -> bool:
        if self._chunked:
            self._tail = (self._tail + data)[-5:]
            return self._tail == b"0\r\n\r\n"
        self._need -= len(data)
        return self._need <= 0

    def _send(self) -> None:
        self._first, self._tail = True, b""
        self._begun_s = time.perf_counter()
        self._transport.write(self._request)


async def load(
    port: int, body: bytes, streams: int, seconds: float, spread_s: float = 0.0
) -> LoadFigures:
    """Send one request after the other on each of several connections.

    Args:
        port: of the router, on the loopback interface.
        body: of every request.
        streams: number of connections.
        seconds: duration.
        spread_s: the connections begin evenly within this time; 0 begins all at once.
    """
    request = _request(body)
    loop = asyncio.get_running_loop()
    result = LoadResult()
    begun_s = time.perf_counter()
    connections = []
    for at in range(streams):
        await asyncio.sleep(begun_s + spread_s * at / streams - time.perf_counter())
        _, connection = await loop.create_connection(
            lambda: LoadConnection(request, result, begun_s + seconds), "127.0.0.1", port
        )
        connections.append(connection.done)
    _, late = await asyncio.wait(connections, timeout=seconds + 10.0)
    result.timed_out = len(late)
    return result.figures(time.perf_counter() - begun_s)


async def idle_streams(port: int, pid: int, count: int) -> IdleFigures:
    """Open streams, wait for the first event of each, and measure the memory of the router.

    Args:
        port: of the router, on the loopback interface.
        pid: of the router.
        count: number of streams.
    """
    request = _request(STREAM)
    before = resident_bytes(pid)
    writers: list[asyncio.StreamWriter] = []
    opened = 0
    try:
        for begin in range(0, count, _OPENED_TOGETHER):
            batch = await asyncio.gather(
                *(
                    asyncio.open_connection("127.0.0.1", port)
                    for _ in range(min(_OPENED_TOGETHER, count - begin))
                )
            )
            for _, writer in batch:
                writer.write(request)
                writers.append(writer)
            for reader, _ in batch:
                async with asyncio.timeout(_FIRST_EVENT_LIMIT_S):
                    await reader.readuntil(b"data: {")
                opened += 1
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
        return IdleFigures(opened, problem=repr(error))
    used = resident_bytes(pid) - before
    for writer in writers:
        writer.transport.abort()
    return IdleFigures(opened, round(used / opened / 1024, 1))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its children."""
    with bench_extra("bench_router"):
        import psutil
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(int(member.memory_info().rss) for member in family)


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and its children, in seconds.

    Other work on the machine changes it less than elapsed time.
    """
    with bench_extra("bench_router"):
        import psutil
    process = psutil.Process(pid)
    times = [member.cpu_times() for member in [process, *process.children(recursive=True)]]
    return sum(float(time.user + time.system) for time in times)


def _request(body: bytes) -> bytes:
    return (
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )


def _ms(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 2)
