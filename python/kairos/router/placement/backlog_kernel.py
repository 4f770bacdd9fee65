"""Compiled loops over the prompts that one prefill instance holds, in the order it serves them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.policy.compiled import compiled

Rows = npt.NDArray[np.float64]

COLUMNS = 6
DEADLINE, WORK, REST, TOKENS, MOST, OVERDUE = range(COLUMNS)
"""Monotonic seconds; seconds, uncalibrated; seconds left, calibrated; prompt tokens; seconds should
no prefix hit come true, uncalibrated; seconds since it should have been done."""


@compiled
def advance(
    rows: Rows, passed: float, factor: float, floor: float, in_turn: bool, grace: float
) -> None:
    """Serve for `passed` seconds.

    Args:
        factor: calibrates work.
        floor: share of its work that a prompt keeps until it is done.
        in_turn: no prompt is served before the first one is done. One that is overdue will take as
            long again, as what made its prediction wrong is not known; but once it would be done
            without a prefix hit, and `grace` seconds later, it waits for something else and blocks
            nobody.
    """
    for i in range(rows.shape[0]):
        if passed <= 0.0:
            return
        least = floor * factor * rows[i, WORK]
        if rows[i, OVERDUE] == 0.0:
            served = min(passed, max(rows[i, REST] - least, 0.0))
            rows[i, REST] -= served
            passed -= served
        if not in_turn or passed <= 0.0:
            continue
        may_be = factor * (rows[i, MOST] - rows[i, WORK]) + grace
        if rows[i, OVERDUE] <= may_be:
            rows[i, OVERDUE] += passed
            passed = 0.0
            rows[i, REST] = rows[i, OVERDUE] if rows[i, OVERDUE] <= may_be else least


@compiled
def ahead(rows: Rows, now: float, deadline: float, work: float, order: bool, slice: float) -> float:
    """Seconds that run before a request; see `PrefillTarget.ahead_s`.

    Args:
        order: the instance serves by deadline, but for the `slice` seconds of its current batch.
    """
    total = 0.0
    for i in range(rows.shape[0]):
        rest = rows[i, REST]
        if now + rest <= rows[i, DEADLINE]:
            before = rows[i, DEADLINE] <= deadline
        else:
            before = deadline == np.inf and rest <= work
        if before or not order:
            total += rest
        elif i == 0:
            total += min(rest, slice)
    return total


@compiled
def held(rows: Rows, now: float, order: bool, found: Any) -> int:
    """Fill `found` with (deadline, seconds) of what cannot be passed; how many."""
    count = 0
    for i in range(rows.shape[0]):
        rest = rows[i, REST]
        if order and now + rest > rows[i, DEADLINE]:
            continue
        found[count, 0] = rows[i, DEADLINE] if order else -np.inf
        found[count, 1] = rest
        count += 1
    return count


@compiled
def begun(rows: Rows, factor: float) -> float:
    """Seconds of work that are taken to be done of what is not finished, uncalibrated."""
    total = 0.0
    for i in range(rows.shape[0]):
        total += max(rows[i, WORK] - rows[i, REST] / factor, 0.0)
    return total


@compiled
def total(rows: Rows, column: int) -> float:
    """The sum of a column."""
    found = 0.0
    for i in range(rows.shape[0]):
        found += rows[i, column]
    return found
