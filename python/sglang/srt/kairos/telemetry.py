"""Load, calibration, slack and preempted memory of this scheduler, published for routers.

ZeroMQ PUB: nobody has to listen, nothing is kept for who is slow, and sending never waits. The
router that misses a message takes the next.
"""

import math
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import msgspec
import zmq

from kairos.errors import InputError
from kairos.telemetry import MAX_BYTES, TelemetryReport, encoder, is_endpoint

INTERVAL_S = 0.05
"""Messages are at least this far apart."""
MOST_COUNTED = 2_000
"""Requests of a queue whose work is added up; a longer queue is late whatever its exact length."""


class TelemetryPublisher:
    """Args:
        endpoint: `tcp://host:port` to listen on; port 0 takes a free one.

    Attributes:
        endpoint: where it listens.

    Raises:
        InputError: the endpoint cannot be had.
    """

    def __init__(self, endpoint: str) -> None:
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
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.endpoint = bound.rstrip("\0")
        self._epoch = secrets.token_hex(8)
        self._sequence = 0
        self._next_s = 0.0

    def tick(self, scheduler: Any) -> bool:
        """Publish what is true of an upstream `Scheduler` now, if it is time to; whether it was."""
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + INTERVAL_S
        self._sequence += 1
        report = report_of(scheduler, self._epoch, self._sequence)
        with suppress(zmq.ZMQError):  # the next report says it all anew
            self._socket.send(encoder.encode(report), zmq.NOBLOCK)
        return True

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


def publisher_for(endpoint: str | None, scheduler: Any) -> TelemetryPublisher | None:
    """The publisher of an upstream `Scheduler`; None where it shall be silent: nothing asked for,
    or not the first rank.

    Raises:
        InputError: the endpoint cannot be had, or several data-parallel ranks would share it.
    """
    if endpoint is None:
        return None
    if scheduler.server_args.dp_size > 1:
        raise InputError("--kairos-telemetry does not work with data parallelism")
    # Here, because importing it takes seconds; a scheduler has it loaded.
    from sglang.srt.runtime_context import get_parallel

    return TelemetryPublisher(endpoint) if get_parallel().tp_rank == 0 else None


def report_of(scheduler: Any, epoch: str, sequence: int) -> TelemetryReport:
    """One message about an upstream `Scheduler` that carries a `KairosState`."""
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
        return msgspec.structs.replace(report, **_prefill(scheduler))
    if getattr(kairos, "decode", None) is not None:
        return msgspec.structs.replace(report, **_decode(kairos))
    return report


def _prefill(scheduler: Any) -> dict[str, Any]:
    """What is left to compute, and how long that takes by the learned model."""
    model, factor = scheduler.kairos.planner.observer.model()
    chunk = scheduler.chunked_prefill_size
    tokens, seconds = 0, 0.0
    for done, total in islice(_prompts(scheduler), MOST_COUNTED):
        tokens += max(0, total - done)
        seconds += model.remaining_s(done, total, chunk)
    return {"uncached_tokens": tokens, "backlog_s": seconds * factor, "calibration": factor}


def _prompts(scheduler: Any) -> Iterator[tuple[int, int]]:
    """(computed tokens, all tokens) of the prompts that are not done: started, preempted, waiting,
    and those that still wait for their decode server."""
    for req in (scheduler.chunked_req, *scheduler.kairos.planner.preempted):
        if req is not None:
            yield req.extend_end, _total(req)
    for req in scheduler.waiting_queue:
        yield min(req.num_matched_prefix_tokens or 0, _total(req) - 1), _total(req)
    for req in scheduler.disagg_prefill_bootstrap_queue.queue:
        yield 0, _total(req)


def _decode(kairos: Any) -> dict[str, Any]:
    """Who sits out, and how tight it is for the residents."""
    learned = kairos.clock.learned("decode_steps", None)
    found: dict[str, Any] = {"calibration": None if learned is None else float(learned.factor)}
    batcher = kairos.decode.batcher
    rows = batcher.rows.rows
    if not len(rows):
        return {**found, "skipped": 0, "skipped_kv_tokens": 0}
    skipped = ~rows["runs"]
    slack = (
        rows["first_token_s"] + rows["tpot_s"] * (rows["output_tokens"] + 1) - kairos.clock.now()
    )
    tightest = float(slack.min())
    return {
        **found,
        "skipped": int(skipped.sum()),
        "skipped_kv_tokens": int(rows["context_tokens"][skipped].sum()),
        "slack_s": tightest if math.isfinite(tightest) else None,
    }


def _total(req: Any) -> int:
    return len(req.origin_input_ids) + len(req.output_ids)
