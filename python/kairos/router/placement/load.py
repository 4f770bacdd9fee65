"""What an instance says of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """One report of one instance; None where it does not say.

    Attributes:
        measured_s: when it was true, on the router's monotonic clock: receipt less its age.
        kv_used_tokens: KV tokens that cannot be had now (in use, or promised to queued requests).
        kv_capacity_tokens: KV tokens of the instance.
        running: requests in its batch, skipped ones included.
        waiting: requests in its queues.
        max_running: requests it runs at most.
        uncached_tokens: prompt tokens that its queue still has to compute (prefill).
        backlog_s: predicted time to compute them (prefill, Kairos engines).
        calibration: measured / predicted time of its latency model (Kairos engines).
        slack_s: smallest slack of its residents (decode, Kairos engines).
        epoch: differs after every restart of the instance.
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
