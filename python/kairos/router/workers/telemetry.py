"""Reports of the instances: received from Kairos engines, fetched from plain ones."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import orjson
import zmq
import zmq.asyncio

from kairos.router.placement.load import WorkerLoad
from kairos.telemetry import MAX_BYTES, VERSION, TelemetryReport, decoder, is_endpoint

POLL_S = 0.5
POLL_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 1 << 20
_WILDCARDS = ("0.0.0.0", "[::]")

OnLoad = Callable[[str, WorkerLoad], None]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Feed:
    """How one instance is watched, and what came of it.

    Attributes:
        endpoint: where its messages are published; None: its loads are fetched.
        received: reports taken in.
        failed: messages or answers that could not be read, fetches that failed.
    """

    endpoint: str | None
    task: asyncio.Task[None]
    received: int = 0
    failed: int = 0


class Telemetry:
    """Calls `on_load(key, load)` on the event loop for every report of a watched instance.

    A report that is lost or late is not asked for again: the next one replaces it. Nothing here
    fails when an instance is silent; the reader of a report looks at its age.

    Args:
        on_load: must not block.
        session: for fetching loads; its headers carry the engines' key. Not closed here.
        poll_s: seconds between two fetches from one instance.
    """

    def __init__(
        self,
        on_load: OnLoad,
        session: aiohttp.ClientSession,
        headers: Callable[[], Mapping[str, str]] = dict,
        poll_s: float = POLL_S,
    ) -> None:
        self._on_load = on_load
        self._session = session
        self._headers = headers
        self._poll_s = poll_s
        self._context: zmq.asyncio.Context | None = None
        self._watches: dict[str, _Feed] = {}

    def watch(self, key: str, url: str, server_info: Mapping[str, Any] | None = None) -> None:
        """Start to watch an instance, or start anew if its endpoint has changed.

        Args:
            key: names it in `on_load`.
            url: `http://host:port` of its server.
            server_info: its answer to /server_info; tells where a Kairos engine publishes.
        """
        endpoint = endpoint_of(server_info or {}, url)
        current = self._watches.get(key)
        if current is not None:
            if current.endpoint == endpoint and not current.task.done():
                return
            current.task.cancel()
        run = self._fetch(key, url) if endpoint is None else self._receive(key, endpoint)
        task = asyncio.get_running_loop().create_task(run, name=f"telemetry {key}")
        self._watches[key] = _Feed(endpoint, task)

    def forget(self, key: str) -> None:
        """Stop to watch an instance; unknown keys are ignored."""
        watch = self._watches.pop(key, None)
        if watch is not None:
            watch.task.cancel()

    async def close(self) -> None:
        tasks = [watch.task for watch in self._watches.values()]
        self._watches.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Per key: endpoint, received and failed; for /workers and metrics."""
        return {
            key: {"endpoint": w.endpoint, "received": w.received, "failed": w.failed}
            for key, w in self._watches.items()
        }

    async def _receive(self, key: str, endpoint: str) -> None:
        if self._context is None:
            self._context = zmq.asyncio.Context()
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.CONFLATE, 1)  # only the latest matters
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            if "[" in endpoint:
                socket.setsockopt(zmq.IPV6, 1)
            socket.connect(endpoint)
            while True:
                data = await socket.recv()
                load = read_report(data, time.monotonic())
                self._take(key, load, "not a report")
        except zmq.ZMQError as error:
            _log.warning("telemetry of %s from %s: %s", key, endpoint, error)
        finally:
            socket.close()

    async def _fetch(self, key: str, url: str) -> None:
        timeout = aiohttp.ClientTimeout(total=POLL_TIMEOUT_S)
        while True:
            load, problem = None, ""
            # Halfway between question and answer, it was true.
            asked = time.monotonic()
            try:
                async with self._session.get(
                    f"{url}/v1/loads",
                    params={"include": "core"},
                    headers=self._headers(),  # asked for each time: a reload changes the key
                    timeout=timeout,
                ) as answer:
                    data = await answer.content.read(_MAX_ANSWER_BYTES)
                    if answer.status == 200:
                        load = read_loads(data, (asked + time.monotonic()) / 2.0)
                    problem = f"/v1/loads answered {answer.status}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = type(error).__name__
            self._take(key, load, problem)
            await asyncio.sleep(self._poll_s)

    def _take(self, key: str, load: WorkerLoad | None, problem: str) -> None:
        watch = self._watches.get(key)
        if watch is None:
            return
        if load is None:
            watch.failed += 1
            if watch.failed == 1:
                _log.warning("telemetry of %s: %s", key, problem)
            return
        watch.received += 1
        self._on_load(key, load)


def endpoint_of(server_info: Mapping[str, Any], url: str) -> str | None:
    """Where a Kairos engine publishes, from its /server_info; None if it does not. An engine that
    listens on all addresses is reached at the host of `url`."""
    states = server_info.get("internal_states")
    for state in states if isinstance(states, list) else []:
        kairos = state.get("kairos") if isinstance(state, Mapping) else None
        endpoint = kairos.get("telemetry") if isinstance(kairos, Mapping) else None
        if not isinstance(endpoint, str) or not is_endpoint(endpoint):
            continue
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        if host in _WILDCARDS:
            host = urlsplit(url).netloc.rpartition("@")[2].rpartition(":")[0]
        return f"tcp://{host}:{port}"
    return None


def read_report(data: bytes, received_s: float) -> WorkerLoad | None:
    """A message of a Kairos engine; None if it is not one."""
    try:
        report: TelemetryReport = decoder.decode(data)
    except msgspec.DecodeError:
        return None
    if report.version != VERSION:
        return None
    prefill = report.role == "prefill"
    return WorkerLoad(
        measured_s=received_s,
        kv_used_tokens=report.kv_used_tokens,
        kv_capacity_tokens=report.kv_capacity_tokens or None,
        running=report.running,
        waiting=report.waiting,
        max_running=report.max_running or None,
        uncached_tokens=report.uncached_tokens if prefill else None,
        backlog_s=report.backlog_s if prefill else None,
        calibration=report.calibration,
        slack_s=report.slack_s,
        epoch=report.epoch,
    )


def read_loads(data: bytes, measured_s: float) -> WorkerLoad | None:
    """An answer of /v1/loads, summed over data-parallel ranks; None if it is not one."""
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
