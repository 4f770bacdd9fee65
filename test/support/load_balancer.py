"""Real HAProxy with the configuration that is shipped, and clients that count what they lose."""

import csv
import grp
import http.client
import io
import itertools
import json
import os
import pwd
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[2] / "deploy/haproxy/haproxy.cfg"
_LONG_PROMPT_BYTES = 100_000  # HAProxy cannot send a body above 16 KiB again


class LoadBalancer:
    """HAProxy in front of three routers.

    Args:
        port: to listen on.
        routers: ports of the routers.
        folder: for its log and its socket.
        pem: certificate and key; None for plain HTTP.
    """

    def __init__(
        self, port: int, routers: list[int], folder: Path, pem: Path | None = None
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._socket = folder / "haproxy.sock"
        self.log = folder / "haproxy.log"
        named = {f"KAIROS_ROUTER_{i}": f"127.0.0.1:{at}" for i, at in enumerate(routers, 1)}
        environment = {
            **os.environ,
            **named,
            "KAIROS_BIND": f"127.0.0.1:{port}",
            "KAIROS_SOCKET": str(self._socket),
            "KAIROS_USER": pwd.getpwuid(os.getuid()).pw_name,
            "KAIROS_GROUP": grp.getgrgid(os.getgid()).gr_name,
            **({} if pem is None else {"KAIROS_TLS_PEM": str(pem)}),
        }
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                ["haproxy", "-db", "-f", str(CONFIG)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def states(self) -> dict[str, str]:
        """UP or DOWN, with HAProxy's additions, by router; empty before HAProxy listens."""
        try:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(str(self._socket))
                asked.sendall(b"show stat\n")
                text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
        except OSError:
            return {}
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        return {row["svname"]: row["status"] for row in rows if row["svname"].startswith("router")}

    def wait_for(self, state: str, *routers: int, limit_s: float = 60.0) -> None:
        """Return once HAProxy says so of these routers, counted from 1."""
        deadline = time.monotonic() + limit_s
        while {self.states().get(f"router{i}") for i in routers} != {state}:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"{routers} not {state}: {self.states()}\n{self.tail()}")
            time.sleep(0.02)

    def tail(self) -> str:
        """The last lines of its log."""
        return self.log.read_text()[-4000:]


@dataclass(frozen=True, slots=True)
class Lost:
    """A request without a complete answer.

    Attributes:
        sent_s: when it was sent, monotonic.
        stream: whether its answer is a stream.
        long: whether its prompt is long.
        begun: whether the head of the answer had come.
        problem: status and body, or what broke.
    """

    sent_s: float
    stream: bool
    long: bool
    begun: bool
    problem: str


class Load:
    """Clients that send one request after the other, streaming and whole ones in turn, every
    seventh with a long prompt.

    Args:
        events: that a complete stream holds.

    Attributes:
        lost: requests without a complete answer.
        complete: number of the others.
        slowest_s: longest time from request to complete answer.
    """

    def __init__(self, port: int, clients: int, events: int) -> None:
        self.lost: list[Lost] = []
        self.complete = 0
        self.slowest_s = 0.0
        self._port = port
        self._events = events
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Send no more; return when the last answer is there."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a request has not ended"

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stop.is_set():
            number = next(self._numbers)
            stream, long = number % 2 == 0, number % 7 == 0
            text = "a " * (_LONG_PROMPT_BYTES // 2) if long else "hello"
            body = {"model": "tiny", "prompt": text, "max_tokens": 2, "stream": stream}
            sent_s = time.monotonic()
            begun = False
            try:
                connection.request(
                    "POST",
                    "/v1/completions",
                    json.dumps(body),
                    {"Content-Type": "application/json"},
                )
                answer = connection.getresponse()
                begun = True
                data = answer.read()
                problem = "" if answer.status == 200 else f"{answer.status} {data!r}"
                problem = problem or self._missing(stream, data)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                problem = repr(error)
            with self._lock:
                if problem:
                    self.lost.append(Lost(sent_s, stream, long, begun, problem))
                else:
                    self.complete += 1
                    self.slowest_s = max(self.slowest_s, time.monotonic() - sent_s)
        connection.close()

    def _missing(self, stream: bool, data: bytes) -> str:
        """What a 200 lacks; empty if it is complete."""
        if not stream:
            whole = json.loads(data)["choices"][0]["finish_reason"] == "length"
            return "" if whole else f"incomplete {data!r}"
        events = data.count(b"data: {")
        ended = data.endswith(b"data: [DONE]\n\n") and b'"error"' not in data
        return "" if ended and events == self._events else f"{events} events: {data[-200:]!r}"


@contextmanager
def under_load(port: int, clients: int, events: int) -> Iterator[Load]:
    """Load while the block runs; the last answer is there at its end."""
    load = Load(port, clients, events)
    try:
        yield load
    finally:
        load.end()
