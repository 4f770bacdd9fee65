"""Compiled inner loops of the slack policy; docs/explanation/slack.md has the method."""

import math
from typing import Any

import numpy as np

from kairos.policy.compiled import compiled

FAR = 1e12  # added to a sort key: after everything without it
EXPRESS_HORIZON = 32.0  # where no output ends that early, there is time to catch up
EXPRESS_CATCH_UP = 2.0  # tokens in which a fresh request should catch up
EXPRESS_FLOOR = 0.25  # shortest express step, as a share of its TPOT objective
SPLIT_WORTH = 0.25  # a step without x % of those who cannot sit out is x / 4 % shorter at least
SIT_OUT = 2.0  # full steps of slack with which a request can sit out
CONTEXT_OFFSET = 1_500.0  # tokens of context that cost as much as a row's share of the weights


@compiled
def step_s(table: Any, factor: float, batch: float, total: float, longest: float) -> float:
    """Predicted seconds of a step. `table`: a `StepTable`; `factor`: its calibration."""
    if batch < 1.0:
        return 0.0
    context = (1.0 - table.straggler) * total + table.straggler * batch * longest
    row = table.seconds[min(int(batch), table.seconds.shape[0] - 1)]
    x = context / table.knot_tokens
    left = min(int(x), row.shape[0] - 2)
    return float(factor * (row[left] + (x - left) * (row[left + 1] - row[left])))


@compiled
def _step_with(table: Any, factor: float, load: Any, context: float) -> float:
    """Step time of the batch `load` = (rows, total context, longest context) and one row more."""
    return step_s(table, factor, load[0] + 1.0, load[1] + context, max(load[2], context))


@compiled
def _add(load: Any, row: Any) -> None:
    row.runs = True
    load[0] += 1.0
    load[1] += row.context_tokens
    load[2] = max(load[2], row.context_tokens)


@compiled
def running_step_s(rows: Any, table: Any, factor: float) -> float:
    """Predicted seconds of a step of the rows that run."""
    load = np.zeros(3)
    for i in range(rows.shape[0]):
        if rows[i].runs:
            _add(load, rows[i])
    return step_s(table, factor, load[0], load[1], load[2])


@compiled
def horizon_of(row: Any, p: Any, horizons: Any) -> float:
    """Tokens over which a request has to catch up: a low quantile of what is predicted to remain;
    while nothing is known, as many as it has made already."""
    at = min(int(4.0 * math.log2(row.output_tokens + 1.0)), horizons.shape[1] - 1)
    # Without an estimator there is one row for all, and a newer class has none of its own.
    predicted = horizons[min(row.length_group, horizons.shape[0] - 1), at]
    if predicted == 0.0:
        predicted = min(p.horizon_max, p.horizon_min + row.output_tokens)
    return float(max(1.0, min(predicted, row.max_new_tokens - row.output_tokens)))


@compiled
def _is_infeasible(tau: float, slack: float, horizon: float, p: Any) -> bool:
    """Whether the pace that a request may take is out of reach. Not judged over fewer tokens than
    `horizon_min`: most requests make more than the low quantile that sets their pace."""
    return bool(tau + slack / max(horizon, p.horizon_min) < p.min_pace_ratio * tau)


@compiled
def select(
    rows: Any, now: float, table: Any, factor: float, p: Any, horizons: Any, max_batch: int
) -> float:
    """Who runs in the next step: fills `runs` and updates `infeasible`. `p`: the `SlackParams`.

    Returns:
        predicted seconds of the selected step.
    """
    n = rows.shape[0]
    slack = np.empty(n)
    pace = np.empty(n)
    load = np.zeros(3)
    tightest = math.inf
    starved = 0.0
    for i in range(n):
        row = rows[i]
        slack[i] = row.first_token_s + row.tpot_s * (row.output_tokens + 1 - p.guard_tokens) - now
        horizon = horizon_of(row, p, horizons)
        pace[i] = row.tpot_s + slack[i] / horizon
        if _is_infeasible(row.tpot_s, slack[i], horizon, p):
            row.infeasible = True
        elif pace[i] >= row.tpot_s:
            row.infeasible = False
        row.runs = False
        if not row.infeasible:
            _add(load, row)
            tightest = min(tightest, max(pace[i], p.min_step_share * row.tpot_s))
        elif now - row.last_token_s > p.starvation_s:
            starved += 1.0
    on_time = load[0]
    # Slots for those on time: starved victims may take half of a full step, and one at least.
    room = max_batch - min(starved, max(1.0, float(max_batch // 2)))
    whole = step_s(table, factor, load[0], load[1], load[2])

    express = _express_target(rows, slack, whole, table, factor, p, horizons)
    if express < min(whole, tightest):
        _pack(rows, now, slack, pace, whole, express, True, load, table, factor, p, room)
    elif whole > tightest or load[0] > room:
        hurt = _pack(rows, now, slack, pace, whole, math.inf, False, load, table, factor, p, room)
        shorter = 1.0 - step_s(table, factor, load[0], load[1], load[2]) / whole
        if shorter < SPLIT_WORTH * hurt / on_time and on_time <= room:
            load[:] = 0.0
            for i in range(n):
                if not rows[i].infeasible:
                    _add(load, rows[i])
    _serve_victims(rows, now, slack, pace, load, table, factor, p, max_batch)
    return step_s(table, factor, load[0], load[1], load[2])


@compiled
def all_run_for(
    rows: Any, now: float, table: Any, factor: float, p: Any, max_batch: int, steps: int
) -> bool:
    """Whether `select` would choose everybody now and in each of the next `steps` steps, if they
    take as long as predicted: nobody is behind but victims, and a step of all of them, grown by
    then, still keeps the tightest pace that `select` plans for."""
    n = rows.shape[0]
    total = 0.0
    longest = 0.0
    tightest = math.inf
    for i in range(n):
        row = rows[i]
        slack = row.first_token_s + row.tpot_s * (row.output_tokens + 1 - p.guard_tokens) - now
        if slack < 0.0 and not row.infeasible:
            return False
        total += row.context_tokens + steps
        longest = max(longest, float(row.context_tokens + steps))
        tightest = min(tightest, row.tpot_s)
    grown = step_s(table, factor, float(n), total, longest)
    return bool(n <= max_batch and grown <= p.min_step_share * tightest)


@compiled
def _express_target(
    rows: Any, slack: Any, whole: float, table: Any, factor: float, p: Any, horizons: Any
) -> float:
    """Length of a step in which fresh requests that are behind catch up while those with banked
    slack sit out; infinite when nobody is fresh and behind."""
    load = np.zeros(3)
    target = math.inf
    for i in range(rows.shape[0]):
        row = rows[i]
        if row.infeasible or slack[i] > row.tpot_s + SIT_OUT * whole:
            continue
        load[0] += 1.0
        load[1] += row.context_tokens
        load[2] = max(load[2], row.context_tokens)
        fresh = (
            row.output_tokens < p.express_tokens and horizon_of(row, p, horizons) < EXPRESS_HORIZON
        )
        if fresh and slack[i] < (0.9 - p.guard_tokens) * row.tpot_s:
            wanted = row.tpot_s + slack[i] / EXPRESS_CATCH_UP
            target = min(target, max(wanted, EXPRESS_FLOOR * row.tpot_s))
    return max(target, step_s(table, factor, load[0], load[1], load[2]))


@compiled
def _pack(
    rows: Any,
    now: float,
    slack: Any,
    pace: Any,
    whole: float,
    target: float,
    express: bool,
    load: Any,
    table: Any,
    factor: float,
    p: Any,
    room: float,
) -> float:
    """Choose at most `room` of those that are no victims: the starved, then who cannot sit out,
    cheap ones first and as long as the step keeps everybody's pace, then who can, as long as the
    step gets no longer.

    Returns:
        how many of them are left out and cannot sit out.
    """
    n = rows.shape[0]
    load[:] = 0.0
    key = np.empty(n)
    spare = SIT_OUT * whole if express else whole
    for i in range(n):
        row = rows[i]
        row.runs = False
        if row.infeasible:
            key[i] = math.inf
        elif now - row.last_token_s > p.starvation_s:
            key[i] = row.last_token_s - FAR
        elif slack[i] > row.tpot_s + spare:
            key[i] = row.context_tokens + FAR
        else:
            key[i] = (row.context_tokens + CONTEXT_OFFSET) / row.tpot_s
    for at in _order(key, rows):
        row = rows[at]
        if row.infeasible or load[0] >= room:
            break
        bound = target
        if key[at] < FAR and not express:
            bound = min(target, max(pace[at], p.min_step_share * row.tpot_s))
        needed = key[at] < 0.0 or (key[at] < FAR and (express or load[0] == 0.0))
        if needed or _step_with(table, factor, load, row.context_tokens) <= bound:
            _add(load, row)
            target = bound
    hurt = 0.0
    for i in range(n):
        if not rows[i].infeasible and not rows[i].runs and key[i] < FAR:
            hurt += 1.0
    return hurt


@compiled
def _serve_victims(
    rows: Any,
    now: float,
    slack: Any,
    pace: Any,
    load: Any,
    table: Any,
    factor: float,
    p: Any,
    max_batch: int,
) -> None:
    """Fill the step with victims, the starved first, up to a length that costs nobody his pace."""
    # Nobody on time: nobody to wait for, and all that fit run.
    n = rows.shape[0]
    # Victims that do not run keep slots from those who wait for one: then steps are as full as
    # steps of those on time may be.
    shortest = p.min_step_share if n >= max_batch else 0.0
    limit = math.inf
    victims = 0.0
    key = np.full(n, math.inf)
    for i in range(n):
        row = rows[i]
        if row.infeasible:
            victims += 1.0
            key[i] = row.context_tokens
            if now - row.last_token_s > p.starvation_s:
                key[i] = row.last_token_s - FAR
        else:
            banked = min(0.5 * slack[i], 3.0 * row.tpot_s)
            limit = min(limit, max(min(pace[i], row.tpot_s), banked, shortest * row.tpot_s))
    if victims == 0.0:
        return
    for at in _order(key, rows):
        row = rows[at]
        if not row.infeasible or load[0] >= max_batch:
            break
        needed = load[0] == 0.0 or key[at] < 0.0
        if needed or _step_with(table, factor, load, row.context_tokens) <= limit:
            _add(load, row)


@compiled
def admit(
    rows: Any,
    now: float,
    p: Any,
    horizons: Any,
    held: float,
    capacity: float,
    slots: int,
    max_batch: int,
) -> Any:
    """Indices of the waiting rows to admit: those that can keep their pace first, short ones first.

    Args:
        held: tokens of KV in use, of `capacity`.
        slots: requests that may be admitted, of `max_batch`.
    """
    n = rows.shape[0]
    key = np.empty(n)
    for i in range(n):
        row = rows[i]
        first = max(row.first_token_s, min(row.hold_until_s, now))
        slack = first + row.tpot_s * (row.output_tokens + 1 - p.guard_tokens) - now
        late = _is_infeasible(row.tpot_s, slack, horizon_of(row, p, horizons), p)
        key[i] = row.context_tokens + (FAR if late else 0.0)
    order = _order(key, rows)
    count = 0
    for at in order:
        late = key[at] >= FAR
        share = p.infeasible_share if late else p.kv_share
        kept_free = (1.0 - p.infeasible_share) * max_batch if late and held > 0.0 else 0.0
        if slots - count <= kept_free or (
            held > 0.0 and held + rows[at].context_tokens > share * capacity
        ):
            break
        held += rows[at].context_tokens
        count += 1
    return order[:count]


@compiled
def _order(key: Any, rows: Any) -> Any:
    """Indices by (key, id)."""
    order = np.argsort(rows["id"])
    return order[np.argsort(key[order], kind="mergesort")]
