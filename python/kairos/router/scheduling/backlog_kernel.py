"""Compiled loops over the prompts that one prefill instance holds, in the order it serves them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.policy.compiled import compiled

Rows = npt.NDArray[np.float64]

COLUMNS = 5
DEADLINE, WORK, REST, TOKENS, OVERDUE = range(COLUMNS)
"""Monotonic seconds; seconds, uncalibrated; seconds left, calibrated; prompt tokens; seconds since
it should have been done."""


@compiled
def advance(rows: Rows, passed: float, floor: float, in_turn: bool) -> None:
    """Serve for `passed` seconds; each row keeps `floor` times its work at least.

    Args:
        in_turn: nobody is served before the first one is done. If that one is overdue, it will
            take as long again: whatever made its prediction wrong is not known.
    """
    for i in range(rows.shape[0]):
        if passed <= 0.0:
            return
        served = min(passed, max(rows[i, REST] - floor * rows[i, WORK], 0.0))
        rows[i, REST] -= served
        passed -= served
        if in_turn:
            rows[i, OVERDUE] += passed
            rows[i, REST] = max(rows[i, REST], rows[i, OVERDUE])
            return


@compiled
def ahead(rows: Rows, now: float, deadline: float, work: float, order: bool, slice: float) -> float:
    """Seconds that run before a request; see `PrefillInstance.ahead_s`.

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
