"""Compiled inner loops over the router's waiting requests. Rows are sorted by (deadline, id).

The method is that of `kairos.policy.urgency_kernel`, for several instances that share one queue and
with shares between tenants.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.policy.compiled import compiled
from kairos.policy.moore_hodgson import pop, push

Rows = npt.NDArray[Any]

ROW = np.dtype(
    [
        ("deadline", np.float64),
        ("id", np.int64),
        ("arrival", np.float64),
        ("work", np.float64),  # marginal prefill time, seconds
        ("flow", np.int64),
        ("best_effort", np.int64),
    ]
)

KEPT, DROPPED, LATE, YIELDS, CHOSEN = 0, 1, 2, 3, 4


@compiled
def classify(
    rows: Rows,
    now: float,
    held: npt.NDArray[np.float64],
    servers: int,
    factor: float,
    base_latency_s: float,
    state: Any,
) -> None:
    """Moore-Hodgson over the requests that can still make it, on `servers` instances. Of equal
    ones that with the latest deadline is deferred: should predictions be too long, it can return.

    Args:
        held: (deadline, seconds) of the work that the instances hold already, by deadline; it goes
            before feasible work that is due later.
        factor: measured / predicted time of the work.
        base_latency_s: what a request needs beside its work until its first token, seconds.
        state: filled with KEPT, DROPPED, LATE or YIELDS.
    """
    n = rows.shape[0]
    keys = np.empty(n)
    members = np.empty(n, np.int64)
    size = 0
    end = now + base_latency_s
    next_held = 0
    for i in range(n):
        row = rows[i]
        work = row.work * factor
        if row.best_effort != 0:
            state[i] = YIELDS
            continue
        if now + base_latency_s + work > row.deadline:
            state[i] = LATE
            continue
        while next_held < held.shape[0] and held[next_held, 0] <= row.deadline:
            end += held[next_held, 1] / servers
            next_held += 1
        state[i] = KEPT
        push(keys, members, size, work, -i)
        size += 1
        end += work / servers
        while end > row.deadline and size > 0:
            worst = -pop(keys, members, size)
            size -= 1
            state[worst] = DROPPED
            end -= rows[worst].work * factor / servers


@compiled
def pick(rows: Rows, state: Any, now: float, flow: int) -> int:
    """Index of the most urgent request not chosen yet, of one flow unless `flow` is -1; -1: none.

    Kept ones by deadline, dropped ones by work, late ones by response ratio, best effort by
    arrival.
    """
    best, best_state, best_key = -1, CHOSEN, 0.0
    for i in range(rows.shape[0]):
        if state[i] == CHOSEN or state[i] > best_state:
            continue
        row = rows[i]
        if flow >= 0 and row.flow != flow:
            continue
        if state[i] == KEPT:
            return i
        if state[i] == DROPPED:
            key = -row.work
        elif state[i] == LATE:
            key = (now - row.arrival) / row.work
        else:
            key = -row.arrival
        if state[i] < best_state or key > best_key or (key == best_key and row.id < rows[best].id):
            best, best_state, best_key = i, state[i], key
    return best


@compiled
def oldest_starved(rows: Rows, state: Any, now: float, after: float) -> int:
    """The oldest infeasible or deferred request past `after` times its SLO, or -1."""
    best = -1
    for i in range(rows.shape[0]):
        if state[i] == KEPT or state[i] == CHOSEN:
            continue
        row = rows[i]
        if now - row.arrival <= after * (row.deadline - row.arrival):
            continue
        if best < 0 or (row.arrival, row.id) < (rows[best].arrival, rows[best].id):
            best = i
    return best


@compiled
def work_ahead(rows: Rows, count: int, now: float, factor: float, base_latency_s: float) -> float:
    """Seconds of work of the first `count` requests that can still make it."""
    total = 0.0
    for i in range(count):
        work = rows[i].work * factor
        if rows[i].best_effort == 0 and now + base_latency_s + work <= rows[i].deadline:
            total += work
    return total
