"""Compiled loops over the router's waiting requests. Rows are sorted by (deadline, id).

The method is that of `kairos.policy.urgency_kernel`, for several workers that share one queue and
with shares between tenants.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.policy.best_effort import STARVED_AFTER_S
from kairos.policy.compiled import compiled
from kairos.policy.moore_hodgson import DEFERRED, FEASIBLE, INFEASIBLE, defer_overload

Rows = npt.NDArray[Any]

ROW = np.dtype(
    [
        ("deadline", np.float64),
        ("id", np.int64),
        ("arrival", np.float64),
        ("work", np.float64),  # marginal prefill time, seconds
        ("flow", np.int64),
        ("best_effort", np.int64),
        ("state", np.int64),
    ]
)

YIELDS, CHOSEN = 3, 4
"""Further states of a request: best effort; considered since the last `classify`."""


@compiled
def classify(
    rows: Rows,
    now: float,
    held: npt.NDArray[np.float64],
    workers: int,
    factor: float,
    base_latency: float,
) -> None:
    """Set the state of every request: FEASIBLE, DEFERRED, INFEASIBLE or YIELDS.

    Args:
        held: (deadline, seconds) of the work that the workers hold already, by deadline; it goes
            before feasible work that is due later.
        workers: prefill workers that share the queue.
        factor: measured / predicted time of the work.
        base_latency: time that a request needs beside its work until its first token, seconds.
    """
    n = rows.shape[0]
    work, due, state = np.empty(n), np.empty(n), np.empty(n, np.int8)
    held_s = 0.0
    next_held = 0
    for i in range(n):
        row = rows[i]
        while next_held < held.shape[0] and held[next_held, 0] <= row.deadline:
            held_s += held[next_held, 1] / workers
            next_held += 1
        own = row.work * factor
        work[i] = own / workers
        due[i] = row.deadline - held_s
        state[i] = FEASIBLE if now + base_latency + own <= row.deadline else INFEASIBLE
        if row.best_effort != 0:
            state[i] = YIELDS
    defer_overload(work, work, due, now + base_latency, state)
    for i in range(n):
        rows[i].state = state[i]


@compiled
def pick(rows: Rows, now: float, flow: int) -> int:
    """Return the index of the most urgent request that was not chosen yet; -1: none.

    Feasible requests go by deadline, deferred ones by work, infeasible ones by response ratio, best
    effort by arrival. Only requests of `flow` count, unless it is -1.
    """
    best, best_state, best_key = -1, CHOSEN, 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        if row.state == CHOSEN or row.state > best_state or (flow >= 0 and row.flow != flow):
            continue
        if row.state == FEASIBLE:
            return i
        if row.state == DEFERRED:
            key = -row.work
        elif row.state == INFEASIBLE:
            key = (now - row.arrival) / row.work
        else:
            key = -row.arrival
        if row.state < best_state or key > best_key or (key == best_key and row.id < rows[best].id):
            best, best_state, best_key = i, row.state, key
    return best


@compiled
def oldest_starved(rows: Rows, now: float, after: float) -> int:
    """Return the oldest starved request that is not feasible; -1: none.

    A request is starved past `after` times its SLO, or after `STARVED_AFTER_S` if it has none.
    """
    best = -1
    for i in range(rows.shape[0]):
        row = rows[i]
        if row.state == FEASIBLE or row.state == CHOSEN:
            continue
        after_s = STARVED_AFTER_S
        if row.deadline < math.inf:
            after_s = after * (row.deadline - row.arrival)
        if now - row.arrival <= after_s:
            continue
        if best < 0 or (row.arrival, row.id) < (rows[best].arrival, rows[best].id):
            best = i
    return best


@compiled
def work_ahead(rows: Rows, now: float, factor: float, base_latency: float) -> float:
    """Return the seconds of work of the requests that can still be feasible."""
    total = 0.0
    for i in range(rows.shape[0]):
        work = rows[i].work * factor
        if rows[i].best_effort == 0 and now + base_latency + work <= rows[i].deadline:
            total += work
    return total
