"""Compiled inner loops of the slack policy. docs/explanation/slack.md has the method.

`rows` are rows of `residents.ROW`, `p` is a `SlackParams`, and `horizons` are those of a
`LengthEstimator`.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from kairos.latency.table import StepTable
from kairos.policy.compiled import compiled

FAR = 1e12
"""Added to a sort key: such rows follow all others."""
EXPRESS_HORIZON = 32.0
"""Tokens. Requests whose output is predicted to be longer have time to catch up."""
EXPRESS_CATCH_UP = 2.0
"""Tokens in which a new request is to catch up."""
EXPRESS_FLOOR = 0.25
"""Shortest express step, as a share of its TPOT objective."""
EXPRESS_SLOT_SHARE = 0.3
"""Share of the slots in use from which there are no express steps."""
MIN_WORTH = 0.97
"""A step that skips requests must be worth this share of a step of all; see `_worth`."""
SIT_OUT = 2.0
"""Full steps of slack with which a request can sit out an express step."""
CONTEXT_OFFSET = 1_500.0
"""Tokens of context that cost as much as a row's share of the weights."""


class StepCost(NamedTuple):
    """Predicts the duration of a step.

    Attributes:
        table: step times.
        factor: calibration of the table.
    """

    table: StepTable
    factor: float


class Candidates(NamedTuple):
    """Residents at the start of a step.

    Attributes:
        rows: the residents.
        now_s: start of the step.
        slack_s: slack of each, seconds.
        pace_s: time per token at which each still meets its objective, seconds.
        whole_s: duration of a step of all feasible residents, seconds.
        tightest_s: longest step that keeps the pace of all feasible residents, seconds.
    """

    rows: Any
    now_s: float
    slack_s: Any
    pace_s: Any
    whole_s: float
    tightest_s: float


class PackLimits(NamedTuple):
    """Bounds of a step.

    Attributes:
        target_s: longest step, seconds.
        express: whether the step lets new requests catch up.
        slots: most requests.
    """

    target_s: float
    express: bool
    slots: float


class AdmitLimits(NamedTuple):
    """Memory and slots of a decode instance.

    Attributes:
        used_tokens: tokens of KV in use.
        capacity_tokens: tokens of KV in total.
        slots: requests that may be admitted.
        max_batch: requests that the instance can hold.
    """

    used_tokens: float
    capacity_tokens: float
    slots: int
    max_batch: int


@compiled
def step_s(cost: StepCost, batch: float, total: float, longest: float) -> float:
    """Return the predicted seconds of a step.

    Args:
        cost: predicts it.
        batch: requests.
        total: sum of their contexts, tokens.
        longest: longest of their contexts, tokens.
    """
    if batch < 1.0:
        return 0.0
    table = cost.table
    context = (1.0 - table.straggler) * total + table.straggler * batch * longest
    row = table.seconds[min(int(batch), table.seconds.shape[0] - 1)]
    x = context / table.knot_tokens
    left = min(int(x), row.shape[0] - 2)
    own_s = cost.factor * (row[left] + (x - left) * (row[left + 1] - row[left]))
    return float(max(own_s, _floor_s(cost, batch)))


@compiled
def _floor_s(cost: StepCost, batch: float) -> float:
    """Return the seconds for which a batch waits for other data-parallel ranks at any rate."""
    floor_s = cost.table.floor_s
    return float(cost.factor * floor_s[min(int(batch), floor_s.shape[0] - 1)])


@compiled
def _load_s(cost: StepCost, load: Any) -> float:
    """Return the predicted seconds of a batch `load` = (rows, total context, longest context)."""
    return step_s(cost, load[0], load[1], load[2])


@compiled
def _load_with_s(cost: StepCost, load: Any, context: float) -> float:
    """Return the predicted seconds of the batch `load` and one row more."""
    return step_s(cost, load[0] + 1.0, load[1] + context, max(load[2], context))


@compiled
def _fits(cost: StepCost, load: Any, context: float, bound_s: float) -> bool:
    """Return whether a row may join the batch `load`: the step keeps `bound_s`, or is no longer.

    A rank that waits for a slower one runs its rows for free.
    """
    return _load_with_s(cost, load, context) <= max(bound_s, _floor_s(cost, load[0] + 1.0))


@compiled
def _count(load: Any, row: Any) -> None:
    load[0] += 1.0
    load[1] += row.context_tokens
    load[2] = max(load[2], row.context_tokens)


@compiled
def _run(load: Any, row: Any) -> None:
    row.runs = True
    _count(load, row)


@compiled
def has_objective(rows: Any) -> bool:
    """Return whether any of the rows has a TPOT objective."""
    for i in range(rows.shape[0]):  # noqa: SIM110  # numba compiles no generator
        if rows[i].tpot_s < math.inf:
            return True
    return False


@compiled
def running_step_s(rows: Any, table: StepTable, factor: float) -> float:
    """Return the predicted seconds of a step of the rows that run.

    Args:
        rows: the residents.
        table: step times.
        factor: calibration of the table.
    """
    load = np.zeros(3)
    for i in range(rows.shape[0]):
        if rows[i].runs:
            _count(load, rows[i])
    return _load_s(StepCost(table, factor), load)


@compiled
def horizon_of(row: Any, p: Any, horizons: Any) -> float:
    """Return the tokens over which a request has to catch up.

    This is a low quantile of its predicted remaining output; while nothing is known, as many
    tokens as it has made.
    """
    at = min(int(4.0 * math.log2(row.output_tokens + 1.0)), horizons.shape[1] - 1)
    # Without an estimator one row serves all groups, and a newer class has no row of its own.
    predicted = horizons[min(row.length_group, horizons.shape[0] - 1), at]
    if predicted == 0.0:
        predicted = min(p.horizon_max, p.horizon_min + row.output_tokens)
    return float(max(1.0, min(predicted, row.max_new_tokens - row.output_tokens)))


@compiled
def _slack_s(row: Any, first_token_s: float, now_s: float, p: Any) -> float:
    """Return the time left until the next token is due, less the guard, seconds."""
    if row.tpot_s == math.inf:
        return math.inf
    tokens = row.output_tokens + 1 - p.guard_tokens
    return float(first_token_s + row.tpot_s * tokens - now_s)


@compiled
def _is_infeasible(
    tpot_s: float, slack_s: float, horizon: float, p: Any, shortest_s: float
) -> bool:
    """Return whether a request would need a pace that is out of reach.

    It is not judged over fewer tokens than `horizon_min`: most requests make more than the low
    quantile that sets their pace. No pace is faster than `shortest_s`, a step of one request.
    """
    fastest_s = max(p.min_pace_ratio * tpot_s, shortest_s)
    return bool(tpot_s + slack_s / max(horizon, p.horizon_min) < fastest_s)


@compiled
def select(
    rows: Any, now_s: float, table: StepTable, factor: float, p: Any, horizons: Any, max_batch: int
) -> tuple[float, bool]:
    """Choose the requests of the next step: fills `runs` and updates `infeasible` of the rows.

    Args:
        rows: the residents.
        now_s: start of the step.
        table: step times.
        factor: calibration of the table.
        p: parameters.
        horizons: of outputs.
        max_batch: most requests in the step.

    Returns:
        Predicted seconds of the step, and whether any request can be kept on pace at a price that
        pays. If not, all run.
    """
    cost = StepCost(table, factor)
    n = rows.shape[0]
    if not has_objective(rows):
        rows["runs"][:] = True
        return running_step_s(rows, table, factor), False
    slack_s, pace_s = np.empty(n), np.empty(n)
    load = np.zeros(3)
    tightest_s = math.inf
    starved = 0.0
    # Other ranks are slow for a while only, so their floor makes no request infeasible.
    shortest_s = factor * table.seconds[1, 0]
    for i in range(n):
        row = rows[i]
        slack_s[i] = _slack_s(row, row.first_token_s, now_s, p)
        horizon = horizon_of(row, p, horizons)
        pace_s[i] = row.tpot_s + slack_s[i] / horizon
        # A best-effort request has no pace to keep, so it takes the room that infeasible ones get.
        if row.tpot_s == math.inf or _is_infeasible(row.tpot_s, slack_s[i], horizon, p, shortest_s):
            row.infeasible = True
        elif pace_s[i] >= row.tpot_s:
            row.infeasible = False
        row.runs = False
        if not row.infeasible:
            _run(load, row)
            tightest_s = min(tightest_s, max(pace_s[i], p.min_step_share * row.tpot_s))
        elif now_s - row.last_token_s > p.starvation_s:
            starved += 1.0
    whole_s = _load_s(cost, load)
    candidates = Candidates(rows, now_s, slack_s, pace_s, whole_s, tightest_s)
    # Infeasible requests that are starved may take half of a full step, and one slot at least.
    slots = max_batch - min(starved, max(1.0, float(max_batch // 2)))
    _select_feasible(candidates, slots, cost, p, horizons, load)
    _add_infeasible(candidates, cost, p, max_batch, load)
    pays = not math.isinf(tightest_s)
    if pays and load[0] < min(n, max_batch):
        pays = _skipping_pays(candidates, cost, p, max_batch, load)
    return _load_s(cost, load), pays


@compiled
def _worth(candidates: Candidates, p: Any, runs: Any, load: Any, seconds: float) -> float:
    """Return the tokens of a step plus the requests that keep their pace in it, per second.

    A token on time thus counts twice. A skipped request with banked slack keeps its pace, too.

    Args:
        candidates: the residents.
        p: parameters.
        runs: whether each runs.
        load: of those that run.
        seconds: duration of the step.
    """
    rows, slack_s, pace_s = candidates.rows, candidates.slack_s, candidates.pace_s
    kept = 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        if row.infeasible:
            continue
        if runs[i]:
            kept += seconds <= max(pace_s[i], p.min_step_share * row.tpot_s)
        else:
            kept += slack_s[i] > row.tpot_s + seconds
    return float((load[0] + kept) / seconds)


@compiled
def _skipping_pays(
    candidates: Candidates, cost: StepCost, p: Any, max_batch: int, load: Any
) -> bool:
    """Return whether the batch `load` is worth as much as a step of all residents.

    If not, all run, as many as fit: the residents without a token for longest come first.
    """
    rows = candidates.rows
    n = rows.shape[0]
    runs = np.ones(n, np.bool_)
    full = load.copy()
    if n > max_batch:
        runs[:] = rows["runs"]
        for at in _order(rows["last_token_s"], rows):
            if not runs[at] and full[0] < max_batch:
                runs[at] = True
                _count(full, rows[at])
    else:
        for i in range(n):
            if not rows[i].runs:
                _count(full, rows[i])
    seconds, full_s = _load_s(cost, load), _load_s(cost, full)
    worth = _worth(candidates, p, rows["runs"], load, seconds)
    if worth >= MIN_WORTH * _worth(candidates, p, runs, full, full_s):
        return True
    rows["runs"][:] = runs
    load[:] = full
    return False


@compiled
def _select_feasible(
    candidates: Candidates, slots: float, cost: StepCost, p: Any, horizons: Any, load: Any
) -> None:
    """Leave feasible requests out of the batch `load` of all of them where that is worth it.

    Args:
        candidates: the residents.
        slots: most feasible requests.
        cost: predicts the duration.
        p: parameters.
        horizons: of outputs.
        load: of all feasible requests; updated.
    """
    feasible, whole_s, tightest_s = load[0], candidates.whole_s, candidates.tightest_s
    express_s = math.inf
    if candidates.rows.shape[0] < EXPRESS_SLOT_SHARE * slots:
        express_s = _express_target_s(candidates, cost, p, horizons)
    if express_s < min(whole_s, tightest_s):
        _pack(candidates, cost, p, PackLimits(express_s, True, slots), load)
    elif whole_s > tightest_s or feasible > slots:
        _pack(candidates, cost, p, PackLimits(math.inf, False, slots), load)


@compiled
def all_run_for(
    rows: Any, now_s: float, table: StepTable, factor: float, p: Any, max_batch: int, steps: int
) -> bool:
    """Return whether `select` would choose all rows now and in each of the next `steps` steps.

    Steps are assumed to take as long as predicted. The answer is True if only infeasible requests
    are behind, and if a step of all rows, grown by then, keeps the tightest pace that `select`
    plans for.
    """
    n = rows.shape[0]
    if not has_objective(rows):
        return True
    total = 0.0
    longest = 0.0
    tightest_s = math.inf
    for i in range(n):
        row = rows[i]
        if _slack_s(row, row.first_token_s, now_s, p) < 0.0 and not row.infeasible:
            return False
        total += row.context_tokens + steps
        longest = max(longest, float(row.context_tokens + steps))
        tightest_s = min(tightest_s, row.tpot_s)
    grown_s = step_s(StepCost(table, factor), float(n), total, longest)
    return bool(n <= max_batch and grown_s <= p.min_step_share * tightest_s)


@compiled
def _express_target_s(candidates: Candidates, cost: StepCost, p: Any, horizons: Any) -> float:
    """Return the length of a step in which new requests that are behind catch up.

    Requests with banked slack sit it out. Infinite when no new request is behind.
    """
    rows, slack_s, whole_s = candidates.rows, candidates.slack_s, candidates.whole_s
    load = np.zeros(3)
    target_s = math.inf
    for i in range(rows.shape[0]):
        row = rows[i]
        if row.infeasible or slack_s[i] > row.tpot_s + SIT_OUT * whole_s:
            continue
        _count(load, row)
        if row.output_tokens >= p.express_tokens or horizon_of(row, p, horizons) >= EXPRESS_HORIZON:
            continue
        if slack_s[i] < (0.9 - p.guard_tokens) * row.tpot_s:
            wanted_s = row.tpot_s + slack_s[i] / EXPRESS_CATCH_UP
            target_s = min(target_s, max(wanted_s, EXPRESS_FLOOR * row.tpot_s))
    return max(target_s, _load_s(cost, load))


@compiled
def _pack(candidates: Candidates, cost: StepCost, p: Any, limits: PackLimits, load: Any) -> None:
    """Choose feasible requests for a step.

    Starved requests come first. Requests without banked slack follow, the cheapest first, as long
    as the step keeps the pace of all in it. Requests with banked slack join as long as the step
    gets no longer.

    Args:
        candidates: the residents.
        cost: predicts the duration.
        p: parameters.
        limits: bounds of the step.
        load: set to the batch that is chosen.
    """
    rows, now_s = candidates.rows, candidates.now_s
    slack_s, pace_s = candidates.slack_s, candidates.pace_s
    n = rows.shape[0]
    load[:] = 0.0
    key = np.empty(n)
    spare_s = SIT_OUT * candidates.whole_s if limits.express else candidates.whole_s
    for i in range(n):
        row = rows[i]
        row.runs = False
        if row.infeasible:
            key[i] = math.inf
        elif now_s - row.last_token_s > p.starvation_s:
            key[i] = row.last_token_s - FAR
        elif slack_s[i] > row.tpot_s + spare_s:
            key[i] = row.context_tokens + FAR
        else:
            key[i] = (row.context_tokens + CONTEXT_OFFSET) / row.tpot_s
    target_s = limits.target_s
    for at in _order(key, rows):
        row = rows[at]
        if row.infeasible or load[0] >= limits.slots:
            break
        bound_s = target_s
        if key[at] < FAR and not limits.express:
            bound_s = min(target_s, max(pace_s[at], p.min_step_share * row.tpot_s))
        needed = key[at] < 0.0 or (key[at] < FAR and (limits.express or load[0] == 0.0))
        if needed or _fits(cost, load, row.context_tokens, bound_s):
            _run(load, row)
            target_s = bound_s


@compiled
def _add_infeasible(
    candidates: Candidates, cost: StepCost, p: Any, max_batch: int, load: Any
) -> None:
    """Fill the step with infeasible requests, the starved ones first, best-effort ones last.

    Best-effort requests take turns. The step gets no longer than the pace of every feasible request
    allows. Where no resident is feasible, all that fit run.
    """
    rows, now_s = candidates.rows, candidates.now_s
    slack_s, pace_s = candidates.slack_s, candidates.pace_s
    n = rows.shape[0]
    # Infeasible requests that do not run keep slots from those that wait for one. With all slots
    # taken, steps may be as full as steps of feasible requests.
    shortest = p.min_step_share if n >= max_batch else 0.0
    limit_s = math.inf
    infeasible = 0.0
    key = np.full(n, math.inf)
    for i in range(n):
        row = rows[i]
        if row.infeasible:
            infeasible += 1.0
            key[i] = row.context_tokens
            if now_s - row.last_token_s > p.starvation_s:
                key[i] = row.last_token_s - FAR
            elif row.tpot_s == math.inf:
                key[i] = row.last_token_s + FAR
        else:
            banked_s = min(0.5 * slack_s[i], 3.0 * row.tpot_s)
            kept_s = max(min(pace_s[i], row.tpot_s), banked_s, shortest * row.tpot_s)
            limit_s = min(limit_s, kept_s)
    if infeasible == 0.0:
        return
    for at in _order(key, rows):
        row = rows[at]
        if not row.infeasible or load[0] >= max_batch:
            break
        needed = load[0] == 0.0 or key[at] < 0.0
        if needed or _fits(cost, load, row.context_tokens, limit_s):
            _run(load, row)


@compiled
def admit(rows: Any, now_s: float, p: Any, horizons: Any, limits: AdmitLimits) -> Any:
    """Return the indices of the waiting rows to admit.

    Feasible ones come first, then infeasible ones, short ones first. Best-effort ones follow in the
    order of arrival.
    """
    n = rows.shape[0]
    key = np.empty(n)
    for i in range(n):
        row = rows[i]
        if row.tpot_s == math.inf:
            key[i] = row.first_token_s + 2.0 * FAR
            continue
        first_token_s = max(row.first_token_s, min(row.hold_until_s, now_s))
        slack_s = _slack_s(row, first_token_s, now_s, p)
        infeasible = _is_infeasible(row.tpot_s, slack_s, horizon_of(row, p, horizons), p, 0.0)
        key[i] = row.context_tokens + (FAR if infeasible else 0.0)
    order = _order(key, rows)
    used = limits.used_tokens
    count = 0
    for at in order:
        infeasible = key[at] >= FAR
        share = min(p.infeasible_share, p.kv_share) if infeasible else p.kv_share
        kept_free = (
            (1.0 - p.infeasible_share) * limits.max_batch if infeasible and used > 0.0 else 0.0
        )
        fits = used <= 0.0 or used + rows[at].context_tokens <= share * limits.capacity_tokens
        if limits.slots - count <= kept_free or not fits:
            break
        used += rows[at].context_tokens
        count += 1
    return order[:count]


@compiled
def _order(key: Any, rows: Any) -> Any:
    """Return the indices of the rows by (key, id)."""
    order = np.argsort(rows["id"])
    return order[np.argsort(key[order], kind="mergesort")]
