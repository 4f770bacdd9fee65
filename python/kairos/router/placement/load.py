"""A worker's report of its load."""

from dataclasses import dataclass

STALE_S = 2.0
"""An older report is not believed, seconds."""


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """One report of one worker, as of `TelemetryReport`; None where it does not say.

    Attributes:
        measured_s: when it was true, on the router's monotonic clock: receipt less its age.
        uncached_tokens: of prefill servers; the others tell neither this nor `backlog_s`.
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
