"""Compiled inner loops of the urgency policy: one pass over the rows of waiting jobs.

Rows are sorted by (deadline, id). numba caches compiled code on disk; `UrgencyQueue` compiles at
construction so that no decision waits for it.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kairos.policy.compiled import compiled
from kairos.policy.moore_hodgson import DEFERRED, FEASIBLE, INFEASIBLE, defer_overload, pop, push

Rows = npt.NDArray[Any]

ROW = np.dtype(
    [
        ("deadline", np.float64),
        ("id", np.int64),
        ("arrival", np.float64),
        ("total", np.int64),
        ("done", np.int64),
        ("weight", np.float64),
        ("was_feasible", np.int64),  # 0 or 1, in the last plan
    ]
)

BEST_EFFORT, CHOSEN = 3, 4
"""Further states of a job, beside those of `moore_hodgson`: it has no deadline; the plan has taken
it."""


class PlanParams(NamedTuple):
    """The inputs of a decision beside the jobs; flat, because every tuple costs a microsecond.

    Attributes:
        fixed_s: calibrated coefficient of the `PrefillModel`, as the next three.
        weight_floor_s: see there.
        per_token_s: see there.
        per_token_context_s: see there.
        chunk_tokens: new tokens of a full batch, over which the fixed cost is spread.
        budget_tokens: new tokens allowed in the batch.
        page_tokens: chunks that do not complete their prompt are multiples of this.
        min_chunk: shortest such chunk, tokens.
        post_prefill_s: from the end of prefill to the first token, seconds.
        reserve: share of the time beyond `reserve_after_s` that is left to arrivals with earlier
            deadlines.
        reserve_after_s: seconds from the start of the batch that need no reserve.
        slice_s: longest batch, seconds.
        infeasible_slice_s: longest batch to which jobs that are not feasible are added, seconds.
        best_effort_slice_s: the same for jobs without a deadline.
        starvation_after: multiple of its SLO after which a job is starved.
        best_effort_after_s: wait after which a job without a deadline is starved, seconds.
    """

    fixed_s: float
    weight_floor_s: float
    per_token_s: float
    per_token_context_s: float
    chunk_tokens: int
    budget_tokens: int
    page_tokens: int
    min_chunk: int
    post_prefill_s: float
    reserve: float
    reserve_after_s: float
    slice_s: float
    infeasible_slice_s: float
    best_effort_slice_s: float
    starvation_after: float
    best_effort_after_s: float


class _Jobs(NamedTuple):
    """Jobs with their states and remaining work at the start of a batch.

    Attributes:
        rows: the jobs, by (deadline, id).
        state: FEASIBLE, DEFERRED, INFEASIBLE, BEST_EFFORT or CHOSEN for each of them.
        left_s: remaining work of each, seconds.
        start_s: when the batch starts.
    """

    rows: Any
    state: Any
    left_s: Any
    start_s: float


class _Heap(NamedTuple):
    """Storage of a max-heap of row indices; its size is kept apart."""

    keys: Any
    members: Any


class _Batch(NamedTuple):
    """A batch that is being packed.

    Attributes:
        start_s: when it starts.
        tokens: new tokens in it.
        attention_s: seconds of attention to context.
        due_s: earliest deadline of the prompts that it completes.
    """

    start_s: float
    tokens: int
    attention_s: float
    due_s: float


@compiled
def work_s(p: PlanParams, done: int, tokens: int) -> float:
    """Return the marginal seconds of computing `tokens` after `done`, without the fixed cost."""
    return p.per_token_s * tokens + p.per_token_context_s * tokens * (done + 0.5 * tokens)


@compiled
def _batch_s(p: PlanParams, batch: _Batch) -> float:
    """Return the predicted seconds of a batch."""
    return p.fixed_s + max(p.weight_floor_s, p.per_token_s * batch.tokens) + batch.attention_s


@compiled
def classify(rows: Rows, start_s: float, p: PlanParams, state: Any, left_s: Any) -> None:
    """Find the jobs that can meet their deadlines, with time left for jobs yet to arrive.

    Of jobs with equal work per weight that with the latest deadline is deferred first: if
    predictions are too long, there is time left to take it back.

    Args:
        rows: the jobs.
        start_s: when the batch starts.
        p: parameters.
        state: filled with FEASIBLE, DEFERRED, INFEASIBLE or BEST_EFFORT.
        left_s: filled with the remaining work in seconds, fixed cost included.
    """
    n = rows.shape[0]
    keys, due_s = np.empty(n), np.empty(n)
    fixed_per_token_s = p.fixed_s / p.chunk_tokens
    begin_s = start_s + p.post_prefill_s
    for i in range(n):
        row = rows[i]
        tokens = row.total - row.done
        work = work_s(p, row.done, tokens)
        left_s[i] = work + fixed_per_token_s * tokens
        if row.deadline == math.inf:
            state[i] = BEST_EFFORT
            continue
        alone_s = p.fixed_s + max(0.0, p.weight_floor_s - p.per_token_s * tokens) + work
        if begin_s + alone_s > row.deadline:
            state[i] = INFEASIBLE
            continue
        state[i] = FEASIBLE
        keys[i] = left_s[i] / row.weight
        due_s[i] = row.deadline - p.reserve * max(0.0, row.deadline - start_s - p.reserve_after_s)
    defer_overload(left_s, keys, due_s, begin_s, state)


@compiled
def note_feasible(rows: Rows, state: Any) -> int:
    """Remember which jobs are feasible; return how many were at the last call and are not now."""
    demoted = 0
    for i in range(rows.shape[0]):
        feasible = state[i] == FEASIBLE
        demoted += rows[i].was_feasible != 0 and not feasible
        rows[i].was_feasible = feasible
    return demoted


@compiled
def infeasible_key(row: Any, start_s: float, p: PlanParams) -> float:
    """Return the multiple of its SLO at which an infeasible job could end, computed from scratch.

    With the remaining work instead, the key of the running job would stand still while those of
    the others grow: all would take turns, hold their KV, and end last.
    """
    waited_s = start_s + work_s(p, 0, row.total) - row.arrival
    return float(waited_s * row.weight / (row.deadline - row.arrival))


@compiled
def _key(row: Any, state: int, left_s: float, start_s: float, p: PlanParams) -> float:
    """Return the sort key of a job among those of its state, lowest first."""
    if state == FEASIBLE:
        return float(row.deadline)
    if state == DEFERRED:
        return float(left_s / row.weight)
    if state == BEST_EFFORT:
        return float(row.arrival)
    return float(-infeasible_key(row, start_s, p))


@compiled
def sort_keys(rows: Rows, start_s: float, p: PlanParams, state: Any) -> Any:
    """Classify the jobs and return the sort key of each among those of its state.

    Args:
        rows: the jobs.
        start_s: when the batch starts.
        p: parameters.
        state: filled with FEASIBLE, DEFERRED, INFEASIBLE or BEST_EFFORT.
    """
    n = rows.shape[0]
    keys, left_s = np.empty(n), np.empty(n)
    classify(rows, start_s, p, state, left_s)
    for i in range(n):
        keys[i] = _key(rows[i], state[i], left_s[i], start_s, p)
    return keys


@compiled
def _heap_of_state(jobs: _Jobs, which: int, p: PlanParams, heap: _Heap) -> int:
    """Fill a heap with the jobs in state `which`, the most urgent on top; return its size."""
    rows, state, left_s, start_s = jobs
    keys, members = heap
    size = 0
    for i in range(rows.shape[0]):
        if state[i] == which:
            push(keys, members, size, -_key(rows[i], which, left_s[i], start_s, p), i)
            size += 1
    return size


@compiled
def _heap_of_starved(jobs: _Jobs, p: PlanParams, heap: _Heap) -> int:
    """Fill a heap with the starved jobs, the oldest on top; return its size.

    A job is starved if it is not feasible and has waited for a multiple of its SLO, or for a fixed
    time if it has none.
    """
    rows, state, _, start_s = jobs
    keys, members = heap
    size = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        after_s = p.best_effort_after_s
        if state[i] != BEST_EFFORT:
            after_s = p.starvation_after * (row.deadline - row.arrival)
        if state[i] != FEASIBLE and start_s - row.arrival > after_s:
            push(keys, members, size, -row.arrival, i)
            size += 1
    return size


@compiled
def _tokens_within(p: PlanParams, per_token_s: float, done: int, seconds: float) -> int:
    """Return the most tokens after `done` whose marginal work fits into `seconds`.

    A billion at most.

    Args:
        p: parameters.
        per_token_s: their linear cost; 0 where the weight floor covers it.
        done: tokens of the prompt before them.
        seconds: that they may take.
    """
    if seconds <= 0.0:
        return 0
    slope = per_token_s + p.per_token_context_s * done
    seconds = min(seconds, 1e6)
    # work_s solved for tokens, in the form that does not cancel.
    per_token = 0.5 * (slope + math.sqrt(slope**2 + 2.0 * p.per_token_context_s * seconds))
    if seconds >= 1e9 * per_token:
        return 1_000_000_000
    return int(seconds / per_token)


@compiled
def _tokens_before(p: PlanParams, done: int, batch: _Batch, spare_s: float) -> int:
    """Return the most tokens after `done` that lengthen the batch by at most `spare_s`.

    Under the weight floor only their attention takes time.
    """
    free = max(0, int(p.weight_floor_s / p.per_token_s) - batch.tokens)
    if p.per_token_context_s > 0.0 and spare_s < math.inf:
        free = min(free, _tokens_within(p, 0.0, done, spare_s))
    return max(free, _tokens_within(p, p.per_token_s, done, spare_s))


@compiled
def _slice_s(p: PlanParams, state: int) -> float:
    """Return the longest batch to which jobs in `state` are added, seconds."""
    if state == FEASIBLE:
        return float(p.slice_s)
    return float(p.best_effort_slice_s if state == BEST_EFFORT else p.infeasible_slice_s)


@compiled
def _chunk_tokens(row: Any, slice_s: float, budget: int, batch: _Batch, p: PlanParams) -> int:
    """Return the tokens of a job that join a batch; 0 if the batch is complete without them.

    A prompt that the batch completes must not miss its deadline because of what joins it.

    Args:
        row: the job.
        slice_s: longest batch that it may join, seconds; infinite: as SGLang, it fills the batch
            with a chunk of any length.
        budget: new tokens that the batch may still take.
        batch: so far.
        p: parameters.
    """
    used_s = _batch_s(p, batch)
    spare_s = slice_s - used_s
    min_chunk = p.min_chunk if slice_s < math.inf else p.page_tokens
    if batch.tokens > 0 and spare_s <= 0.0:
        return 0
    remaining = row.total - row.done
    in_slice = _tokens_within(p, p.per_token_s, row.done, spare_s)
    until_due_s = batch.due_s - batch.start_s - p.post_prefill_s - used_s
    in_time = _tokens_before(p, row.done, batch, until_due_s)
    tokens = min(remaining, budget, max(min_chunk, p.page_tokens, in_slice), in_time)
    if tokens < remaining:
        tokens -= tokens % p.page_tokens
        if batch.tokens > 0 and tokens < min(min_chunk, budget):
            return 0
    return int(max(tokens, 0))


@compiled
def _pack(jobs: _Jobs, p: PlanParams, credit_s: float, out: Any) -> tuple[int, float, float]:
    """Compose a batch: starved jobs as far as credit allows, then by state and urgency.

    Args:
        jobs: as classified; those that are taken get the state CHOSEN.
        p: parameters.
        credit_s: service that starved jobs may take out of turn, seconds.
        out: filled with rows of (id, tokens).

    Returns:
        number of chunks, predicted seconds of the batch, credit that is left.
    """
    rows, state = jobs.rows, jobs.state
    n = rows.shape[0]
    heap, size = _Heap(np.empty(n), np.empty(n, np.int64)), 0
    starved, starving = _Heap(np.empty(0), np.empty(0, np.int64)), 0
    if credit_s > 0.0:
        starved = _Heap(np.empty(n), np.empty(n, np.int64))
        starving = _heap_of_starved(jobs, p, starved)
    batch = _Batch(jobs.start_s, 0, 0.0, math.inf)
    budget, count, batch_s = p.budget_tokens, 0, 0.0
    cursor, turn = 0, FEASIBLE
    while budget > 0 and count < out.shape[0]:
        # Credit only falls: after the first job that is not starved no starved one follows.
        out_of_turn = credit_s > 0.0 and starving > 0
        if out_of_turn:
            chosen = pop(starved.keys, starved.members, starving)
            starving -= 1
        else:
            while cursor < n and state[cursor] != FEASIBLE:
                cursor += 1
            chosen = cursor
            if cursor == n:
                while size == 0 and turn < BEST_EFFORT:
                    turn += 1
                    size = _heap_of_state(jobs, turn, p, heap)
                if size == 0:
                    break
                chosen = pop(heap.keys, heap.members, size)
                size -= 1
        row = rows[chosen]
        feasible = state[chosen] == FEASIBLE
        slice_s = _slice_s(p, state[chosen])
        state[chosen] = CHOSEN
        tokens = _chunk_tokens(row, slice_s, budget, batch, p)
        if tokens <= 0:
            break
        out[count, 0], out[count, 1] = row.id, tokens
        count += 1
        budget -= tokens
        work = work_s(p, row.done, tokens)
        completes = feasible and tokens == row.total - row.done
        batch = _Batch(
            batch.start_s,
            batch.tokens + tokens,
            batch.attention_s + (work - p.per_token_s * tokens),
            min(batch.due_s, row.deadline) if completes else batch.due_s,
        )
        batch_s = _batch_s(p, batch)
        if out_of_turn:
            credit_s -= work
    return count, batch_s, credit_s


@compiled
def plan(
    rows: Rows, start_s: float, p: PlanParams, credit_s: float, state: Any, out: Any
) -> tuple[int, float, float]:
    """Classify the jobs and compose a batch of them.

    Args:
        rows: the jobs.
        start_s: when the batch starts.
        p: parameters.
        credit_s: service that starved jobs may take out of turn, seconds.
        state: filled with FEASIBLE, DEFERRED, INFEASIBLE or BEST_EFFORT.
        out: filled with rows of (id, tokens).

    Returns:
        number of chunks, predicted seconds of the batch, credit that is left.
    """
    left_s = np.empty(rows.shape[0])
    classify(rows, start_s, p, state, left_s)
    return _pack(_Jobs(rows, state.copy(), left_s, start_s), p, credit_s, out)
