"""Compiled inner loops of the clairvoyant reference."""

import heapq
from typing import Any

import numpy as np

from kairos.policy.compiled import compiled


@compiled
def _feasible(arrival: Any, due: Any, work: Any, keep: Any) -> bool:
    """Whether preemptive EDF on one server meets every deadline of the kept jobs.

    Args:
        arrival: arrival times, seconds, ascending, shape [jobs].
        due: deadlines, seconds, shape [jobs].
        work: service times, seconds, shape [jobs].
        keep: the jobs to serve, shape [jobs].
    """
    left = work.copy()
    queue = [(0.0, 0) for _ in range(0)]
    now = 0.0
    n = arrival.shape[0]
    at = 0
    while True:
        while at < n and not keep[at]:
            at += 1
        if not queue:
            if at == n:
                return True
            now = max(now, arrival[at])
        if at < n and arrival[at] <= now:
            heapq.heappush(queue, (due[at], at))
            at += 1
            continue
        first = queue[0][1]
        until = arrival[at] if at < n else np.inf
        run = min(left[first], until - now)
        now += run
        left[first] -= run
        if now > due[first] + 1e-9:
            return False
        if left[first] <= 1e-12:
            heapq.heappop(queue)


@compiled
def insert_greedily(arrival: Any, due: Any, work: Any, order: Any) -> int:
    """Number of jobs that can be kept when each is tested against all jobs kept before it.

    Args:
        arrival: arrival times, seconds, ascending, shape [jobs].
        due: deadlines, seconds, shape [jobs].
        work: service times, seconds, shape [jobs].
        order: indices of the jobs in the order of the tests.
    """
    keep = np.zeros(arrival.shape[0], np.bool_)
    kept = 0
    for job in order:
        keep[job] = True
        if _feasible(arrival, due, work, keep):
            kept += 1
        else:
            keep[job] = False
    return kept
