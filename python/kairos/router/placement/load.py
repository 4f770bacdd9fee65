"""A worker's report of its load."""

from dataclasses import dataclass

STALE_S = 2.0
"""An older report is not believed, seconds."""


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """One report of one worker; None where it does not say.

    Attributes:
        measured_s: when it was true, on the router's monotonic clock: receipt less its age.
        kv_used_tokens: KV tokens in use, or promised to queued requests.
        kv_capacity_tokens: KV tokens of the worker.
        running: requests in its batch, skipped ones included.
        waiting: requests in its queues.
        max_running: requests it runs at most.
        uncached_tokens: prompt tokens that its queue still has to compute (prefill).
        backlog_s: predicted time to compute them (prefill, Kairos engines).
        calibration: measured / predicted time of its latency model (Kairos engines).
        slack_s: smallest slack of its residents (decode, Kairos engines).
        epoch: differs after every restart of the worker.
    """

    measured_s: float
    kv_used_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    running: int | None = None
    waiting: int | None = None
    max_running: int | None = None
    uncached_tokens: int | None = None
    backlog_s: float | None = None
    calibration: float | None = None
    slack_s: float | None = None
    epoch: str | None = None
