"""Compiled inner loops of the slack policy."""

import math
from typing import Any

import numpy as np

from kairos.policy.compiled import compiled


@compiled
def step_s(table: Any, batch: int, total: float, longest: float) -> float:
    """Predicted seconds of a step; `table`: a `StepTable` and the calibration factor."""
    seconds, knot, straggler, factor = table
    context = (1.0 - straggler) * total + straggler * batch * longest
    if batch >= seconds.shape[0]:
        batch = seconds.shape[0] - 1
    x = context / knot
    left = min(int(x), seconds.shape[1] - 2)
    low = seconds[batch, left]
    return float(factor * (low + (x - left) * (seconds[batch, left + 1] - low)))


@compiled
def select(
    rows: Any,
    now: float,
    table: Any,
    give_up: float,
    floor: float,
    guard: float,
    starve_s: float,
) -> float:
    """Who runs in the next step: fills `runs` and updates `victim`.

    Returns:
        predicted seconds of the selected step.
    """
    n = rows.shape[0]
    slack = np.empty(n)
    pace = np.empty(n)
    batch, total, longest = 0, 0.0, 0.0
    tightest = math.inf
    limit = math.inf
    loosest_victim = 0.0
    for i in range(n):
        row = rows[i]
        slack[i] = row.first + row.tau * (row.tokens + 1 - guard) - now
        pace[i] = row.tau + slack[i] / row.horizon
        if pace[i] < give_up * row.tau:
            row.victim = True
        elif pace[i] >= row.tau:
            row.victim = False
        row.runs = not row.victim
        if row.victim:
            loosest_victim = max(loosest_victim, row.tau)
            continue
        batch += 1
        total += row.context
        longest = max(longest, row.context)
        tightest = min(tightest, max(pace[i], floor * row.tau))
        limit = min(limit, max(min(pace[i], row.tau), min(0.5 * slack[i], 3.0 * row.tau)))
    if batch == 0:
        limit = loosest_victim
    step = step_s(table, batch, total, longest) if batch else 0.0

    if batch and step > tightest:
        batch, total, longest = 0, 0.0, 0.0
        tightest = math.inf
        whole = step
        key = np.empty(n)
        for i in range(n):
            row = rows[i]
            if row.victim:
                key[i] = math.inf
                continue
            row.runs = False
            # Those that can sit this step out come second, shortest first.
            optional = slack[i] > row.tau + whole
            key[i] = row.context + 1e12 if optional else (row.context + 1500.0) / row.tau
        order = _order(key, rows)
        for at in order:
            row = rows[at]
            if row.victim:
                break
            own = math.inf if key[at] >= 1e12 else max(pace[at], floor * row.tau)
            bound = min(tightest, own)
            larger = max(longest, row.context)
            step_with = step_s(table, batch + 1, total + row.context, larger)
            if (batch == 0 and key[at] < 1e12) or step_with <= bound:
                row.runs = True
                batch, total, longest = batch + 1, total + row.context, larger
                tightest = bound

    if loosest_victim > 0.0:
        key = np.empty(n)
        for i in range(n):
            row = rows[i]
            key[i] = row.context if row.victim else math.inf
            if row.victim and now - row.last > starve_s:
                key[i] -= 1e12
        for at in _order(key, rows):
            row = rows[at]
            if not row.victim:
                break
            larger = max(longest, row.context)
            step_with = step_s(table, batch + 1, total + row.context, larger)
            if batch == 0 or key[at] < 0.0 or step_with <= limit:
                row.runs = True
                batch, total, longest = batch + 1, total + row.context, larger
    return step_s(table, batch, total, longest) if batch else 0.0


@compiled
def admission_order(rows: Any, now: float, give_up: float, guard: float) -> Any:
    """Indices of waiting rows: those that can still keep their pace first, short ones first."""
    n = rows.shape[0]
    key = np.empty(n)
    for i in range(n):
        row = rows[i]
        first = max(row.first, min(row.hold, now))
        slack = first + row.tau * (row.tokens + 1 - guard) - now
        late = row.tau + slack / row.horizon < give_up * row.tau
        key[i] = row.context + (1e12 if late else 0.0)
    return _order(key, rows)


@compiled
def _order(key: Any, rows: Any) -> Any:
    """Indices by (key, id)."""
    order = np.argsort(rows["id"])
    return order[np.argsort(key[order], kind="mergesort")]


@compiled
def running_step_s(rows: Any, table: Any) -> float:
    """Predicted seconds of a step of the rows that run."""
    batch, total, longest = 0, 0.0, 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        if row.runs:
            batch, total, longest = batch + 1, total + row.context, max(longest, row.context)
    return step_s(table, batch, total, longest) if batch else 0.0


@compiled
def advance(rows: Any, now: float) -> None:
    """Give one token, made at `now`, to every row that runs."""
    for i in range(rows.shape[0]):
        row = rows[i]
        if row.runs:
            row.tokens += 1
            row.context += 1
            row.last = now
