#!/usr/bin/env python
"""Measure routers in front of instant fake servers: latency added, throughput, memory.

    python scripts/bench_router.py --json OUT [--routers direct,kairos,mini_lb,sglang] [--seconds 5]
    python scripts/bench_router.py --routers kairos --streams 1024 --gap-ms 0 --idle 10000

Servers are fake (test/support/router_instant.py), so the numbers are of the routers alone, and all
processes share this machine's cores. "direct" is one fake server without a router.
"""

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import uvloop

ROOT = Path(__file__).resolve().parent.parent
FAKE = ROOT / "test" / "support" / "router_instant.py"
TOKENS = 64
WHOLE = b'{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":1},"stream":false}'
STREAM = b'{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":64},"stream":true}'


class Client(asyncio.Protocol):
    """One connection that sends the same request again and again."""

    def __init__(self, request: bytes, result: "Result", until_s: float) -> None:
        self._request = request
        self._result = result
        self._until_s = until_s
        self._begun_s = 0.0
        self._first = True
        self._tail = b""
        self._need = 0
        self._chunked = False
        self._event_s = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._result.failed += 1
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._first:
            self._tail += data
            head, found, rest = self._tail.partition(b"\r\n\r\n")
            if not found:
                return
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
                return
            self._first = False
            self._event_s = time.perf_counter()
            self._result.first_s.append(self._event_s - self._begun_s)
            data, self._tail = rest, b""
            self._result.events += data.count(b"data: {")
        elif self._chunked and (events := data.count(b"data: {")):
            now = time.perf_counter()
            self._result.events += events
            self._result.gaps_s += [now - self._event_s] + [0.0] * (events - 1)
            self._event_s = now
        if self._chunked:
            self._tail = (self._tail + data)[-5:]
            if self._tail != b"0\r\n\r\n":
                return
        else:
            self._need -= len(data)
            if self._need > 0:
                return
        self._result.total_s.append(time.perf_counter() - self._begun_s)
        if time.perf_counter() >= self._until_s:
            self.done.set_result(None)
            self._transport.close()
        else:
            self._send()

    def _send(self) -> None:
        self._first, self._tail = True, b""
        self._begun_s = time.perf_counter()
        self._transport.write(self._request)


class Result:
    def __init__(self) -> None:
        self.first_s: list[float] = []
        self.total_s: list[float] = []
        self.gaps_s: list[float] = []
        self.events = 0
        self.failed = 0
        self.late = 0
        self.problem = ""

    def figures(self, seconds: float) -> dict[str, Any]:
        first, total = sorted(self.first_s), sorted(self.total_s)
        gaps = sorted(self.gaps_s)
        return {
            "requests_per_s": round(len(total) / seconds, 1),
            "chunks_per_s": round(self.events / seconds),
            "first_p50_ms": _ms(first, 0.5),
            "first_p99_ms": _ms(first, 0.99),
            "total_p50_ms": _ms(total, 0.5),
            "total_p99_ms": _ms(total, 0.99),
            "requests": len(total),
            "failed": self.failed,
            "timed_out": self.late,
            "gap_p50_ms": _ms(gaps, 0.5),
            "gap_p99_ms": _ms(gaps, 0.99),
            "bunched_percent": round(100.0 * gaps.count(0.0) / len(gaps), 2) if gaps else None,
            **({"problem": self.problem} if self.problem else {}),
        }


async def load(
    port: int, body: bytes, streams: int, seconds: float, spread_s: float = 0.0
) -> dict[str, Any]:
    """So many connections, each with one request after the other.

    Args:
        spread_s: they begin evenly within it, not all at once.
    """
    request = (
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    loop = asyncio.get_running_loop()
    result = Result()
    begun_s = time.perf_counter()
    clients = []
    for at in range(streams):
        await asyncio.sleep(begun_s + spread_s * at / streams - time.perf_counter())
        _, client = await loop.create_connection(
            lambda: Client(request, result, begun_s + seconds), "127.0.0.1", port
        )
        clients.append(client.done)
    _, late = await asyncio.wait(clients, timeout=seconds + 10.0)
    result.late = len(late)
    return result.figures(time.perf_counter() - begun_s)


async def idle_streams(port: int, pid: int, count: int) -> dict[str, Any]:
    """Memory per open stream: `count` of them, of which each has got its first event."""
    request = (
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(STREAM), STREAM)
    )
    before = _rss(pid)
    writers = []
    opened = 0
    try:
        for begin in range(0, count, 200):
            batch = await asyncio.gather(
                *(
                    asyncio.open_connection("127.0.0.1", port)
                    for _ in range(min(200, count - begin))
                )
            )
            for _, writer in batch:
                writer.write(request)
                writers.append(writer)
            for reader, _ in batch:
                async with asyncio.timeout(30):
                    await reader.readuntil(b"data: {")
                opened += 1
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
        return {"streams": opened, "problem": repr(error)}
    used = _rss(pid) - before
    for writer in writers:
        writer.transport.abort()
    return {"streams": opened, "kib_per_stream": round(used / opened / 1024, 1)}


def command(router: str, port: int, prefill: int, decode: int) -> list[str]:
    servers = [
        "--prefill", f"http://127.0.0.1:{prefill}", str(prefill),
        "--decode", f"http://127.0.0.1:{decode}",
    ]  # fmt: skip
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if router == "kairos":
        off = ["--access-log", "off", "--log-level", "warning"]
        return [sys.executable, "-m", "kairos.router", *servers, *where, *off]
    launch = [sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    if router == "mini_lb":
        return [*launch, "--mini-lb", *servers, *where]
    return [*launch, *servers, *where, "--prometheus-port", str(_port()), "--policy", "round_robin"]


async def measure(router: str, args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        port, pid = await _serving(stack, router, TOKENS, 0.0)
        for streams in args.streams:
            for name, body in (("whole", WHOLE), ("stream", STREAM)):
                before_s = _cpu_s(pid)
                figures = await load(port, body, streams, args.seconds)
                used_s = _cpu_s(pid) - before_s
                figures["cpu_us_per_request"] = round(used_s / max(figures["requests"], 1) * 1e6)
                found[f"{name}_{streams}"] = figures
                print(f"{router:8} {name:6} {streams:5}", json.dumps(figures), flush=True)
    if args.gap_ms:
        with ExitStack() as stack:
            port, _ = await _serving(stack, router, TOKENS, args.gap_ms / 1e3)
            for streams in args.streams:
                lasts_s = (TOKENS - 1) * args.gap_ms / 1e3
                seconds = max(args.seconds, 2.0 * lasts_s)
                figures = await load(port, STREAM, streams, seconds, lasts_s)
                found[f"paced_{streams}"] = figures
                print(f"{router:8} paced  {streams:5}", json.dumps(figures), flush=True)
    if args.idle and router != "direct":
        with ExitStack() as stack:
            port, pid = await _serving(stack, router, 2, 2000.0)
            found["idle"] = await idle_streams(port, pid, args.idle)
            print(f"{router:8} idle", json.dumps(found["idle"]), flush=True)
    return found


async def _serving(stack: ExitStack, router: str, tokens: int, gap_s: float) -> tuple[int, int]:
    """Port and process of a router in front of two fake servers, or of one of these."""
    prefill, decode = _port(), _port()
    # As real prefill servers: their answer ends with the first token, and some routers wait for it.
    for fake, made, every_s in ((prefill, 1, 0.0), (decode, tokens, gap_s)):
        pid = _start(stack, [sys.executable, str(FAKE), str(fake), str(made), str(every_s)])
    port = decode
    if router != "direct":
        port = _port()
        pid = _start(stack, command(router, port, prefill, decode))
    await _answers(port)
    return port, pid


async def _answers(port: int) -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        try:
            figures = await load(port, WHOLE, 1, 0.0)
            if figures["requests"] and not figures["failed"]:
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit(f"nothing answers on port {port}")


def _start(stack: ExitStack, argv: list[str]) -> int:
    env = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    process = subprocess.Popen(
        argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )

    def stop() -> None:
        tree = [*psutil.Process(process.pid).children(recursive=True)] if _alive(process) else []
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in tree:
            if child.is_running():
                child.kill()

    stack.callback(stop)
    return process.pid


def _alive(process: "subprocess.Popen[bytes]") -> bool:
    return process.poll() is None


def _rss(pid: int) -> int:
    process = psutil.Process(pid)
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])


def _cpu_s(pid: int) -> float:
    """Processor time of a process and its children: what busy neighbours do not change much."""
    process = psutil.Process(pid)
    times = [p.cpu_times() for p in [process, *process.children(recursive=True)]]
    return sum(time.user + time.system for time in times)


def _allow_files(streams: int) -> None:
    """Raise the limit of open files, which the router inherits: it needs two for each stream."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * streams + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(f"{streams} streams need {needed} open files; at most {hard} are allowed")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _ms(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--routers", default="direct,kairos,mini_lb,sglang")
    parser.add_argument("--streams", default="1,32,256,1024")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--gap-ms", type=float, default=50.0, help="between the events of paced "
                        "streams, for latency and bunching; 0: none")  # fmt: skip
    parser.add_argument("--idle", type=int, default=0, help="open streams for the memory figure")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.streams = [int(count) for count in args.streams.split(",")]
    _allow_files(max(*args.streams, args.idle))
    report: dict[str, Any] = {"cores": os.cpu_count(), "load_average": os.getloadavg()}
    for router in args.routers.split(","):
        report[router] = uvloop.run(measure(router, args))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
