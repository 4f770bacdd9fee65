#!/usr/bin/env python
"""Measure routers in front of instant fake servers: latency added, throughput, memory.

    python scripts/bench_router.py --json OUT [--routers direct,kairos,mini_lb,sglang] [--seconds 5]
    python scripts/bench_router.py --routers kairos --streams 1024 --gap-ms 0 --idle 10000

The servers are fake (test/support/router_instant.py), so the figures describe the routers alone.
All processes share the cores of this machine. "direct" is one fake server without a router.
"""

import argparse
import asyncio
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import uvloop
from router_load import (
    OUTPUT_TOKENS,
    STREAM,
    WHOLE,
    IdleFigures,
    LoadFigures,
    cpu_s,
    idle_streams,
    load,
)

from kairos.errors import InputError
from kairos.extras import bench_extra

ROOT = Path(__file__).resolve().parent.parent
FAKE = ROOT / "test" / "support" / "router_instant.py"
ROUTERS = ("direct", "kairos", "mini_lb", "sglang")

RouterFigures = dict[str, LoadFigures | IdleFigures]


def command(router: str, port: int, prefill: int, decode: int) -> list[str]:
    """Return the command line of a router in front of two servers.

    Args:
        router: "kairos", "mini_lb" or "sglang".
        port: of the router.
        prefill: port of the prefill server.
        decode: port of the decode server.
    """
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


async def measure(router: str, args: argparse.Namespace) -> RouterFigures:
    """Return the figures of one router, by kind of load and number of streams."""
    found: RouterFigures = {}

    def report(name: str, figures: LoadFigures | IdleFigures) -> None:
        found[name] = figures
        print(f"{router:8} {name:12}", msgspec.json.encode(figures).decode(), flush=True)

    with ExitStack() as stack:
        port, pid = await _serving(stack, router, OUTPUT_TOKENS, 0.0)
        for streams in args.streams:
            for name, body in (("whole", WHOLE), ("stream", STREAM)):
                before_s = cpu_s(pid)
                figures = await load(port, body, streams, args.seconds)
                used_s = cpu_s(pid) - before_s
                figures.cpu_us_per_request = round(used_s / max(figures.requests, 1) * 1e6)
                report(f"{name}_{streams}", figures)
    if args.gap_ms:
        with ExitStack() as stack:
            port, _ = await _serving(stack, router, OUTPUT_TOKENS, args.gap_ms / 1e3)
            for streams in args.streams:
                lasts_s = (OUTPUT_TOKENS - 1) * args.gap_ms / 1e3
                seconds = max(args.seconds, 2.0 * lasts_s)
                report(f"paced_{streams}", await load(port, STREAM, streams, seconds, lasts_s))
    if args.idle and router != "direct":
        with ExitStack() as stack:
            port, pid = await _serving(stack, router, 2, 2000.0)
            report("idle", await idle_streams(port, pid, args.idle))
    return found


async def _serving(stack: ExitStack, router: str, tokens: int, gap_s: float) -> tuple[int, int]:
    """Return port and pid of a router in front of two fake servers, or of a fake server."""
    prefill, decode = _port(), _port()
    # The answer of a real prefill server ends with the first token, and some routers wait for it.
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
            if figures.requests and not figures.failed:
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
    stack.callback(_stop, process)
    return process.pid


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with bench_extra("bench_router"):
        import psutil
    running = process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True) if running else []
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        if child.is_running():
            child.kill()


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    add = parser.add_argument
    add("--routers", default=",".join(ROUTERS), metavar="A,B",
        help="routers to measure (default %(default)s)")
    add("--streams", default="1,32,256,1024", metavar="N,N",
        help="numbers of connections (default %(default)s)")
    add("--seconds", type=float, default=5.0, metavar="S",
        help="duration of each load (default %(default)s)")
    add("--gap-ms", type=float, default=50.0, metavar="MS",
        help="time between the events of paced streams, for latency and bunching; 0 leaves them "
        "out (default %(default)s)")
    add("--idle", type=int, default=0, metavar="N",
        help="open streams for the memory figure (default: none)")
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    # fmt: on
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the routers. Return 0, or 2 for bad input."""
    args = _parser().parse_args(argv)
    args.streams = [int(count) for count in args.streams.split(",")]
    _allow_files(max(*args.streams, args.idle))
    report: dict[str, object] = {"cores": os.cpu_count(), "load_average": os.getloadavg()}
    try:
        for router in args.routers.split(","):
            report[router] = uvloop.run(measure(router, args))
    except InputError as error:
        print(f"bench_router: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
