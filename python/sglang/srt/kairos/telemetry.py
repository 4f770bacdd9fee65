"""Load, calibration, slack and skipped memory of a scheduler, published for routers.

ZeroMQ PUB needs no subscriber, keeps nothing for a slow one, and sending never waits. A router that
misses a message takes the next one.
"""

import math
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import zmq
from sglang.srt.kairos.prefill.prompts import cached_tokens, computed_tokens, total_tokens
from sglang.srt.kairos.upstream import Scheduler

from kairos.errors import InputError
from kairos.telemetry import MAX_BYTES, TelemetryReport, encoder, is_endpoint

if TYPE_CHECKING:
    from sglang.srt.kairos.decode.scheduler import DecodeScheduler
    from sglang.srt.kairos.prefill.planner import PrefillPlanner
    from sglang.srt.kairos.shared_clock import SharedClock

    from kairos.latency.steps import LearnedSteps

INTERVAL_S = 0.05
"""Least time between two messages, seconds."""
MAX_COUNTED = 2_000
"""Requests of a queue whose work is added up; a longer queue is late whatever its exact length."""


class TelemetryPublisher:
    """Publishes one scheduler's load.

    Attributes:
        endpoint: the address, with its real port.
    """

    def __init__(self, endpoint: str) -> None:
        """Bind the address.

        Args:
            endpoint: `tcp://host:port`; port 0 takes a free one.

        Raises:
            InputError: the address is malformed or cannot be bound.
        """
        if not is_endpoint(endpoint):
            raise InputError(f"--kairos-telemetry: {endpoint!r} is not tcp://HOST:PORT")
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, 4)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)  # of subscriptions, too
        if "[" in endpoint:
            self._socket.setsockopt(zmq.IPV6, 1)
        if endpoint.endswith(":0"):
            endpoint = f"{endpoint[:-1]}*"
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise InputError(f"--kairos-telemetry: cannot listen on {endpoint}: {error}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._epoch = secrets.token_hex(8)
        self._sequence = 0
        self._next_s = 0.0

    def tick(self, scheduler: Scheduler) -> bool:
        """Publish the scheduler's state if a message is due; return whether it was."""
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + INTERVAL_S
        self._sequence += 1
        report = telemetry_report(scheduler, self._epoch, self._sequence)
        with suppress(zmq.ZMQError):  # the next report repeats all of it
            self._socket.send(encoder.encode(report), zmq.NOBLOCK)
        return True

    def close(self) -> None:
        """Close the socket; unsent messages are dropped."""
        self._socket.close(linger=0)
        self._context.term()


def publisher_for(endpoint: str | None) -> TelemetryPublisher | None:
    """Return the publisher of this scheduler; None without an address and on other ranks than 0.

    Raises:
        InputError: the address cannot be bound.
    """
    if endpoint is None:
        return None
    # Here, because importing it takes seconds; a scheduler has it loaded.
    from sglang.srt.runtime_context import get_parallel

    return TelemetryPublisher(endpoint) if get_parallel().tp_rank == 0 else None


def telemetry_report(scheduler: Scheduler, epoch: str, sequence: int) -> TelemetryReport:
    """Return one message about a scheduler.

    Args:
        scheduler: carries a `KairosState`.
        epoch: names the run of this scheduler.
        sequence: number of the message in that run.
    """
    load = scheduler.load_inquirer.get_loads()
    kairos = scheduler.kairos
    report = TelemetryReport(
        epoch=epoch,
        sequence=sequence,
        role=kairos.role,
        running=int(load.num_running_reqs),
        waiting=int(load.num_waiting_reqs),
        max_running=int(load.max_running_requests),
        kv_used_tokens=int(load.num_total_tokens),
        kv_capacity_tokens=int(load.max_total_num_tokens),
    )
    if kairos.planner is not None:
        return msgspec.structs.replace(report, **_prefill_fields(kairos.planner, scheduler))
    if kairos.decode is not None:
        return msgspec.structs.replace(report, **_decode_fields(kairos.decode, kairos.clock))
    return report


def _prefill_fields(planner: "PrefillPlanner", scheduler: Scheduler) -> dict[str, float]:
    """Return the tokens left to compute, and how long that takes by the learned model."""
    model, factor = planner.observer.model()
    chunk = scheduler.chunked_prefill_size or 0  # a planned server has chunks
    tokens, seconds = 0, 0.0
    for done, total in islice(_prompts(planner, scheduler), MAX_COUNTED):
        tokens += max(0, total - done)
        seconds += model.remaining_s(done, total, chunk)
    return {"uncached_tokens": tokens, "backlog_s": seconds * factor, "calibration": factor}


def _prompts(planner: "PrefillPlanner", scheduler: Scheduler) -> Iterator[tuple[int, int]]:
    """Yield (computed tokens, all tokens) of the prompts that are not done.

    They are started, preempted, waiting, or still wait for their decode server.
    """
    for req in planner.preempted.started(scheduler):
        yield computed_tokens(req), total_tokens(req)
    for req in scheduler.waiting_queue:
        yield cached_tokens(req), total_tokens(req)
    for req in scheduler.disagg_prefill_bootstrap_queue.queue:
        yield 0, total_tokens(req)


def _decode_fields(decode: "DecodeScheduler", clock: "SharedClock") -> dict[str, float | None]:
    """Return the requests that are skipped, and the least slack of the residents."""
    learned: LearnedSteps | None = clock.learned("decode_steps", None)
    found: dict[str, float | None] = {
        "calibration": None if learned is None else float(learned.factor)
    }
    rows = decode.batcher.rows.rows
    if not len(rows):
        return {**found, "skipped": 0, "skipped_kv_tokens": 0}
    skipped = ~rows["runs"]
    # A request without an objective has infinite slack.
    slack = rows["first_token_s"] + rows["tpot_s"] * (rows["output_tokens"] + 1) - clock.now()
    tightest = float(slack.min())
    return {
        **found,
        "skipped": int(skipped.sum()),
        "skipped_kv_tokens": int(rows["context_tokens"][skipped].sum()),
        "slack_s": tightest if math.isfinite(tightest) else None,
    }
