"""Compiled inner loops of the urgency policy: one pass over the rows of waiting jobs.

Rows are sorted by (deadline, id). Compiled code is cached on disk by numba; `UrgencyQueue` compiles
at construction so that no decision waits for it.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.policy.compiled import compiled

Rows = npt.NDArray[Any]
Tuple4 = tuple[float, float, float, float]

ROW = np.dtype(
    [
        ("deadline", np.float64),
        ("id", np.int64),
        ("arrival", np.float64),
        ("total", np.int64),
        ("done", np.int64),
        ("weight", np.float64),
        ("kept", np.bool_),  # by the last plan
    ]
)

KEPT, DROPPED, LATE, CHOSEN = 0, 1, 2, 3


@compiled
def work_s(model: Tuple4, done: int, tokens: int) -> float:
    """Marginal seconds of computing `tokens` tokens after `done`; no fixed cost."""
    return model[2] * tokens + model[3] * tokens * (done + 0.5 * tokens)


@compiled
def _push(keys: Any, members: Any, size: int, key: float, member: int) -> None:
    """Insert into the max-heap keys[:size]; equal keys keep the earlier member on top."""
    at = size
    while at > 0:
        above = (at - 1) // 2
        if keys[above] >= key:
            break
        keys[at], members[at] = keys[above], members[above]
        at = above
    keys[at], members[at] = key, member


@compiled
def _pop(keys: Any, members: Any, size: int) -> int:
    """Remove the largest key of the heap keys[:size]; returns its member."""
    top = members[0]
    key, member = keys[size - 1], members[size - 1]
    size -= 1
    at = 0
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        if below + 1 < size and keys[below + 1] > keys[below]:
            below += 1
        if keys[below] <= key:
            break
        keys[at], members[at] = keys[below], members[below]
        at = below
    keys[at], members[at] = key, member
    return int(top)


@compiled
def classify(
    rows: Rows,
    start: float,
    model: Tuple4,
    chunk_tokens: int,
    tail: float,
    reserve: float,
    reserve_after: float,
    state: Any,
    left: Any,
) -> None:
    """Moore-Hodgson over the jobs that can still make it, with room for jobs yet to arrive.

    Fills state[i] with KEPT, DROPPED or LATE and left[i] with the remaining work in seconds,
    the fixed batch cost spread over chunks of `chunk_tokens`.

    Args:
        reserve: share of the time beyond `reserve_after` seconds from `start` that is left to
            arrivals with earlier deadlines.
    """
    n = rows.shape[0]
    keys = np.empty(n)
    members = np.empty(n, np.int64)
    size = 0
    end = start + tail
    per_token_fixed = model[0] / chunk_tokens
    for i in range(n):
        row = rows[i]
        tokens = row.total - row.done
        linear = model[2] * tokens
        work = work_s(model, row.done, tokens)
        left[i] = work + per_token_fixed * tokens
        due = row.deadline - reserve * max(0.0, row.deadline - start - reserve_after)
        alone = model[0] + max(0.0, model[1] - linear) + work
        if start + tail + alone > row.deadline:
            state[i] = LATE
            continue
        state[i] = KEPT
        _push(keys, members, size, left[i] / row.weight, i)
        size += 1
        end += left[i]
        while end > due and size > 0:
            worst = _pop(keys, members, size)
            size -= 1
            state[worst] = DROPPED
            end -= left[worst]


@compiled
def late_key(rows: Rows, i: int, start: float, model: Tuple4) -> float:
    """Multiple of its SLO at which a late job could be done, were nothing of it computed yet.

    With the work that is left instead, the key of the running job would stand still while those
    of the others grow: all would take turns, hold their KV, and end last.
    """
    row = rows[i]
    waited = start + work_s(model, 0, row.total) - row.arrival
    return float(waited * row.weight / (row.deadline - row.arrival))


@compiled
def _next(rows: Rows, state: Any, left: Any, start: float, cursor: int, model: Tuple4) -> int:
    """Index of the most urgent job not chosen yet, -1 when none is left.

    Kept jobs by deadline, then dropped ones by remaining work, then late ones, see `late_key`.
    `cursor` skips rows known to hold no kept job.
    """
    n = rows.shape[0]
    for i in range(cursor, n):
        if state[i] == KEPT:
            return i
    best, best_state, best_key = -1, LATE + 1, 0.0
    for i in range(n):
        if state[i] == CHOSEN or state[i] > best_state:
            continue
        dropped = state[i] == DROPPED
        key = -left[i] / rows[i].weight if dropped else late_key(rows, i, start, model)
        if (
            state[i] < best_state
            or key > best_key
            or (key == best_key and rows[i].id < rows[best].id)
        ):
            best, best_state, best_key = i, state[i], key
    return best


@compiled
def _oldest_starved(rows: Rows, state: Any, start: float, after: float) -> int:
    """The longest-waiting job that was given up and has waited `after` times its SLO, or -1."""
    best = -1
    for i in range(rows.shape[0]):
        if state[i] != DROPPED and state[i] != LATE:
            continue
        row = rows[i]
        if start - row.arrival <= after * (row.deadline - row.arrival):
            continue
        if best < 0 or (row.arrival, row.id) < (rows[best].arrival, rows[best].id):
            best = i
    return best


@compiled
def _tokens_within(model: Tuple4, done: int, seconds: float) -> int:
    """Most tokens after `done` whose marginal work fits into `seconds`."""
    if seconds <= 0.0:
        return 0
    slope = model[2] + model[3] * done
    seconds = min(seconds, 1e6)
    # work_s solved for tokens, in the form that neither cancels nor divides by zero.
    return int(2.0 * seconds / (slope + math.sqrt(slope**2 + 2.0 * model[3] * seconds)))


@compiled
def pack(
    rows: Rows,
    state: Any,
    left: Any,
    start: float,
    budget: int,
    page: int,
    model: Tuple4,
    tail: float,
    slice_s: float,
    spare_slice_s: float,
    min_chunk: int,
    starve_after: float,
    credit: float,
    out: Any,
) -> tuple[int, float, float]:
    """Deadline-guarded, time-sliced batch. Fills out[k] = (id, tokens).

    Returns:
        number of chunks, predicted batch seconds, credit left.
    """
    fixed, floor, per_token, _ = model
    count, new, attention = 0, 0, 0.0
    batch = 0.0
    due = math.inf  # earliest deadline of the prompts that this batch completes
    cursor = 0
    while budget > 0 and count < out.shape[0]:
        chosen = _oldest_starved(rows, state, start, starve_after) if credit > 0.0 else -1
        starved = chosen >= 0
        if not starved:
            chosen = _next(rows, state, left, start, cursor, model)
        if chosen < 0:
            break
        row = rows[chosen]
        kept = state[chosen] == KEPT
        if kept:
            cursor = chosen + 1
        state[chosen] = CHOSEN

        used = fixed + max(floor, per_token * new) + attention
        room = (slice_s if kept else spare_slice_s) - used
        if count > 0 and room <= 0.0:
            break
        remaining = row.total - row.done
        fits = max(min_chunk, _tokens_within(model, row.done, room))
        # The guard: a prompt completed by this batch must not become late by what joins it. What
        # hides under the weight floor costs it nothing.
        hidden = int(floor / per_token) - new
        on_time = max(hidden, _tokens_within(model, row.done, due - start - tail - used))
        tokens = min(remaining, budget, fits, on_time)
        if tokens < remaining:
            tokens -= tokens % page
            if count > 0 and tokens < min(min_chunk, budget):
                break
        if tokens <= 0:
            break
        out[count, 0] = row.id
        out[count, 1] = tokens
        count += 1
        new += tokens
        budget -= tokens
        attention += work_s(model, row.done, tokens) - per_token * tokens
        batch = fixed + max(floor, per_token * new) + attention
        if starved:
            credit -= work_s(model, row.done, tokens)
        if kept and tokens == remaining:
            due = min(due, row.deadline)
    return count, batch, credit
