"""Load reports of the workers: messages of Kairos engines, and /v1/loads of others."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import orjson
import zmq
import zmq.asyncio

from kairos.router.placement.load import WorkerLoad
from kairos.router.upstream.http_client import BrokenError, ConnectionPool
from kairos.router.workers.endpoint import WorkerEndpoint
from kairos.telemetry import MAX_BYTES, VERSION, TelemetryReport, decoder

POLL_S = 0.5
"""Seconds between two reports that are fetched from one server."""
_FETCH_TIMEOUT_S = 2.0
_LOADS = "/v1/loads?include=core"
_WILDCARDS = ("0.0.0.0", "[::]")
_SAID = {field.name for field in fields(WorkerLoad)}

OnLoad = Callable[[str, WorkerLoad], None]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Feed:
    """The reports of one worker, fetched where it has no publisher of messages."""

    publisher: str | None
    task: asyncio.Task[None]
    received: int = 0
    failed: int = 0


class Telemetry:
    """Calls `on_load(key, load)` on the event loop for every report of a watched worker.

    A lost report is replaced by the next one. A silent worker is no error here: the reader of a
    report looks at its age.

    Args:
        headers: with the servers' key; asked for each time, because a reload changes the key.
        poll_s: seconds between two fetches from one worker.
    """

    def __init__(
        self,
        on_load: OnLoad,
        pool: ConnectionPool,
        headers: Callable[[], Mapping[str, str]] = dict,
        poll_s: float = POLL_S,
    ) -> None:
        self._on_load = on_load
        self._pool = pool
        self._headers = headers
        self._poll_s = poll_s
        self._context = zmq.asyncio.Context()
        self._feeds: dict[str, _Feed] = {}

    def watch(self, endpoint: WorkerEndpoint, publisher: str | None) -> None:
        """Start to watch a worker, or start anew if its publisher has changed.

        `publisher` is the address that a Kairos engine tells; the loads of others are fetched.
        """
        key = endpoint.key
        publisher = publisher and reachable(publisher, endpoint)
        current = self._feeds.get(key)
        if current is not None:
            if current.publisher == publisher and not current.task.done():
                return
            current.task.cancel()
        run = self._fetch(endpoint) if publisher is None else self._receive(key, publisher)
        task = asyncio.get_running_loop().create_task(run, name=f"telemetry {key}")
        self._feeds[key] = _Feed(publisher, task)

    def forget(self, key: str) -> None:
        """Stop to watch a worker; unknown keys are ignored."""
        feed = self._feeds.pop(key, None)
        if feed is not None:
            feed.task.cancel()

    async def close(self) -> None:
        tasks = [feed.task for feed in self._feeds.values()]
        self._feeds.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._context.destroy(linger=0)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return endpoint, received and failed by key, for /workers."""
        return {
            key: {"endpoint": w.publisher, "received": w.received, "failed": w.failed}
            for key, w in self._feeds.items()
        }

    async def _receive(self, key: str, publisher: str) -> None:
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.CONFLATE, 1)  # only the latest matters
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            if "[" in publisher:
                socket.setsockopt(zmq.IPV6, 1)
            socket.connect(publisher)
            while True:
                data = await socket.recv()
                self._take(key, read_report(data, time.monotonic()), "not a report")
        except zmq.ZMQError as error:
            _log.warning("telemetry of %s from %s: %s", key, publisher, error)
        finally:
            socket.close()

    async def _fetch(self, endpoint: WorkerEndpoint) -> None:
        while True:
            load = None
            asked_s = time.monotonic()
            try:
                status, _, data = await self._pool.call(
                    endpoint, "GET", _LOADS, _FETCH_TIMEOUT_S, headers=self._headers()
                )
                problem = f"/v1/loads answered {status}"
                if status == 200:
                    # The report was true halfway between question and answer.
                    load = read_loads(data, (asked_s + time.monotonic()) / 2.0)
            except (BrokenError, TimeoutError) as error:
                problem = str(error) or "no answer to /v1/loads"
            self._take(endpoint.key, load, problem)
            await asyncio.sleep(self._poll_s)

    def _take(self, key: str, load: WorkerLoad | None, problem: str) -> None:
        feed = self._feeds.get(key)
        if feed is None:
            return
        if load is None:
            feed.failed += 1
            if feed.failed == 1:
                _log.warning("telemetry of %s: %s", key, problem)
            return
        feed.received += 1
        self._on_load(key, load)


def reachable(publisher: str, endpoint: WorkerEndpoint) -> str:
    """Return where to connect: a server that publishes on all addresses is reached at its host."""
    host, _, port = publisher.removeprefix("tcp://").rpartition(":")
    if host in _WILDCARDS:
        host = endpoint.key.rpartition(":")[0]
    return f"tcp://{host}:{port}"


def read_report(data: bytes, received_s: float) -> WorkerLoad | None:
    """Read a message of a Kairos engine; None if it is not one."""
    try:
        report: TelemetryReport = decoder.decode(data)
    except msgspec.DecodeError:
        return None
    if report.version != VERSION:
        return None
    said = {name: value for name, value in msgspec.structs.asdict(report).items() if name in _SAID}
    if report.role != "prefill":
        said |= {"uncached_tokens": None, "backlog_s": None}
    return WorkerLoad(measured_s=received_s, **said)


def read_loads(data: bytes, measured_s: float) -> WorkerLoad | None:
    """Read an answer of /v1/loads, summed over data-parallel ranks; None if it is not one."""
    with suppress(KeyError, AttributeError, TypeError, ValueError, OverflowError):
        ranks = orjson.loads(data)["loads"] if data else []
        if not ranks:
            return None

        def total(name: str) -> int | None:
            values = [rank.get(name) for rank in ranks]
            if any(value is None for value in values):
                return None
            return int(sum(values))

        return WorkerLoad(
            measured_s=measured_s,
            kv_used_tokens=total("num_total_tokens"),
            kv_capacity_tokens=total("max_total_num_tokens") or None,
            running=total("num_running_reqs"),
            waiting=total("num_waiting_reqs"),
            max_running=total("max_running_requests") or None,
            uncached_tokens=total("num_waiting_uncached_tokens"),
        )
    return None
