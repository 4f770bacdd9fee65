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

FEASIBLE, DEFERRED, INFEASIBLE, CHOSEN = 0, 1, 2, 3


@compiled
def work_s(model: Tuple4, done: int, tokens: int) -> float:
    """Marginal seconds of computing `tokens` tokens after `done`; no fixed cost."""
    return model[2] * tokens + model[3] * tokens * (done + 0.5 * tokens)


@compiled
def _above(key: float, member: int, other_key: float, other: int) -> bool:
    """Whether an entry of a heap goes before another one: the larger key, the earlier member."""
    return key > other_key or (key == other_key and member < other)


@compiled
def _push(keys: Any, members: Any, size: int, key: float, member: int) -> None:
    """Insert into the max-heap keys[:size]."""
    at = size
    while at > 0:
        above = (at - 1) // 2
        if not _above(key, member, keys[above], members[above]):
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
        if below + 1 < size and _above(
            keys[below + 1], members[below + 1], keys[below], members[below]
        ):
            below += 1
        if not _above(keys[below], members[below], key, member):
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

    Fills state[i] with FEASIBLE, DEFERRED or INFEASIBLE, and left[i] with the remaining work in s,
    the fixed batch cost spread over chunks of `chunk_tokens`. Of equal ones the latest deadline is
    given up: should predictions be too long, there is time left to take it back.

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
            state[i] = INFEASIBLE
            continue
        state[i] = FEASIBLE
        _push(keys, members, size, left[i] / row.weight, -i)
        size += 1
        end += left[i]
        while end > due and size > 0:
            worst = -_pop(keys, members, size)
            size -= 1
            state[worst] = DEFERRED
            end -= left[worst]


@compiled
def note_feasible(rows: Rows, state: Any) -> int:
    """Remember who is kept; returns how many were and are no more."""
    demoted = 0
    for i in range(rows.shape[0]):
        kept = state[i] == FEASIBLE
        demoted += rows[i].kept and not kept
        rows[i].kept = kept
    return demoted


@compiled
def infeasible_key(rows: Rows, i: int, start: float, model: Tuple4) -> float:
    """Multiple of its SLO at which a late job could be done, were nothing of it computed yet.

    With the work that is left instead, the key of the running job would stand still while those
    of the others grow: all would take turns, hold their KV, and end last.
    """
    row = rows[i]
    waited = start + work_s(model, 0, row.total) - row.arrival
    return float(waited * row.weight / (row.deadline - row.arrival))


@compiled
def _key(rows: Rows, state: Any, left: Any, i: int, start: float, model: Tuple4) -> float:
    """Sort key among the jobs of the same state, lowest first."""
    if state[i] == FEASIBLE:
        return float(rows[i].deadline)
    if state[i] == DEFERRED:
        return float(left[i] / rows[i].weight)
    return float(-infeasible_key(rows, i, start, model))


@compiled
def sort_keys(rows: Rows, state: Any, left: Any, start: float, model: Tuple4) -> Any:
    """`_key` of every row. Equal ones go in the order of the rows."""
    keys = np.empty(rows.shape[0])
    for i in range(rows.shape[0]):
        keys[i] = _key(rows, state, left, i, start, model)
    return keys


@compiled
def _heap_of(
    rows: Rows,
    state: Any,
    which: int,
    left: Any,
    start: float,
    model: Tuple4,
    keys: Any,
    members: Any,
) -> int:
    """Make a heap of the jobs in state `which`, the most urgent on top; returns its size."""
    size = 0
    for i in range(rows.shape[0]):
        if state[i] == which:
            _push(keys, members, size, -_key(rows, state, left, i, start, model), i)
            size += 1
    return size


@compiled
def _heap_of_starved(
    rows: Rows, state: Any, start: float, after: float, keys: Any, members: Any
) -> int:
    """The same of the jobs that were given up and have waited `after` times their SLO, the oldest
    on top."""
    size = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        given_up = state[i] == DEFERRED or state[i] == INFEASIBLE
        if given_up and start - row.arrival > after * (row.deadline - row.arrival):
            _push(keys, members, size, -row.arrival, i)
            size += 1
    return size


@compiled
def _tokens_within(model: Tuple4, done: int, seconds: float) -> int:
    """Most tokens after `done` whose marginal work fits into `seconds`; a billion at most."""
    if seconds <= 0.0:
        return 0
    slope = model[2] + model[3] * done
    seconds = min(seconds, 1e6)
    # work_s solved for tokens, in the form that does not cancel.
    per_token = 0.5 * (slope + math.sqrt(slope**2 + 2.0 * model[3] * seconds))
    if seconds >= 1e9 * per_token:
        return 1_000_000_000
    return int(seconds / per_token)


@compiled
def _on_time(model: Tuple4, done: int, new: int, spare: float) -> int:
    """The guard: most tokens after `done` that join a batch of `new` tokens without making it
    longer by more than `spare` seconds. Under the weight floor only their attention takes time."""
    free = max(0, int(model[1] / model[2]) - new)
    if model[3] > 0.0 and spare < math.inf:
        free = min(free, _tokens_within((model[0], model[1], 0.0, model[3]), done, spare))
    return max(free, _tokens_within(model, done, spare))


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
    infeasible_slice_s: float,
    min_chunk: int,
    starvation_after: float,
    credit: float,
    out: Any,
) -> tuple[int, float, float]:
    """Deadline-guarded, time-sliced batch. Fills out[k] = (id, tokens).

    Returns:
        number of chunks, predicted batch seconds, credit left.
    """
    fixed, floor, per_token, _ = model
    n = rows.shape[0]
    keys, members = np.empty(n), np.empty(n, np.int64)
    size = 0
    starved_keys, starved_members = np.empty(0), np.empty(0, np.int64)
    starving = 0
    if credit > 0.0:
        starved_keys, starved_members = np.empty(n), np.empty(n, np.int64)
        starving = _heap_of_starved(
            rows, state, start, starvation_after, starved_keys, starved_members
        )
    count, new, attention = 0, 0, 0.0
    batch = 0.0
    due = math.inf  # earliest deadline of the prompts that this batch completes
    cursor, turn = 0, FEASIBLE
    while budget > 0 and count < out.shape[0]:
        # Credit only falls: once another one is chosen, no starved one is any more.
        starved = credit > 0.0 and starving > 0
        if starved:
            chosen = _pop(starved_keys, starved_members, starving)
            starving -= 1
        else:
            while cursor < n and state[cursor] != FEASIBLE:
                cursor += 1
            chosen = cursor
            if cursor == n:
                while size == 0 and turn < INFEASIBLE:
                    turn += 1
                    size = _heap_of(rows, state, turn, left, start, model, keys, members)
                if size == 0:
                    break
                chosen = _pop(keys, members, size)
                size -= 1
        row = rows[chosen]
        kept = state[chosen] == FEASIBLE
        state[chosen] = CHOSEN

        used = fixed + max(floor, per_token * new) + attention
        room = (slice_s if kept else infeasible_slice_s) - used
        if count > 0 and room <= 0.0:
            break
        remaining = row.total - row.done
        fits = max(min_chunk, page, _tokens_within(model, row.done, room))
        # A prompt completed by this batch must not become late by what joins it.
        on_time = _on_time(model, row.done, new, due - start - tail - used)
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
