"""Forecasts for waiting requests, from the workers of known speed and the queue before them."""

import math
from collections.abc import Collection

from kairos.router.placement.prefill_target import PrefillTarget
from kairos.router.queue.request import QueuedRequest
from kairos.router.queue.request_queue import WaitingQueue

RETRY_S = (1.0, 60.0)
"""Least and most seconds that a rejected client is asked to wait."""


def mean_factor(prefill: Collection[PrefillTarget]) -> float:
    """Return the mean of measured / predicted time; 1 without workers."""
    return sum([p.speed.factor for p in prefill]) / len(prefill) if prefill else 1.0


def base_latency_s(prefill: Collection[PrefillTarget], tail_s: float) -> float:
    """Return the time that a request needs beside its work until its first token, seconds."""
    return min([p.base_latency_s for p in prefill]) + tail_s


def ttft_s(
    entry: QueuedRequest,
    known: Collection[PrefillTarget],
    queue: WaitingQueue,
    tail_s: float,
    now_s: float,
) -> float:
    """Return the more urgent feasible work and the request's own; NaN where nothing is known.

    Later arrivals that are more urgent are not foreseen.
    """
    if not known:
        return math.nan
    factor, base_s = mean_factor(known), base_latency_s(known, tail_s)
    due_s = entry.work.deadline_s
    queued_s = queue.work_ahead(due_s, now_s, factor, base_s) / len(known)
    ahead_s = min([p.ahead_s(now_s, due_s) for p in known])
    return ahead_s + queued_s + base_s + entry.work_s * factor


def retry_s(prefill: Collection[PrefillTarget], queue: WaitingQueue) -> float:
    """Return when an eighth of the queue is served, seconds from now."""
    workers = max(1, sum(p.available for p in prefill))
    work_s = queue.work_s() * mean_factor(prefill)
    return min(max(work_s / workers / 8.0, RETRY_S[0]), RETRY_S[1])
