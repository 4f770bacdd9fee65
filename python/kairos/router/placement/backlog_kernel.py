"""Compiled loops over the prompts that one prefill worker holds, in the order it serves them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.policy.compiled import compiled

Rows = npt.NDArray[Any]

ROW = np.dtype(
    [
        ("deadline", np.float64),  # monotonic seconds
        ("work", np.float64),  # seconds, uncalibrated
        ("longest", np.float64),  # seconds without a prefix hit, uncalibrated
        ("rest", np.float64),  # seconds left, calibrated
        ("tokens", np.float64),
        ("overdue", np.float64),  # seconds since the prompt should have been done
    ]
)


@compiled
def advance(
    rows: Rows, passed: float, factor: float, floor: float, in_turn: bool, grace: float
) -> None:
    """Serve for `passed` seconds.

    Args:
        factor: calibrates work.
        floor: share of its work that a prompt keeps until it is done.
        in_turn: no prompt is served before the first one is done. An overdue prompt is expected to
            take as long again, because the error of its prediction is unknown. Once it would be
            done without a prefix hit, and `grace` seconds later, it waits for something else and
            blocks no other prompt.
    """
    for i in range(rows.shape[0]):
        if passed <= 0.0:
            return
        row = rows[i]
        least = floor * factor * row.work
        if row.overdue == 0.0:
            served = min(passed, max(row.rest - least, 0.0))
            row.rest -= served
            passed -= served
        if not in_turn or passed <= 0.0:
            continue
        may_be = factor * (row.longest - row.work) + grace
        if row.overdue <= may_be:
            row.overdue += passed
            passed = 0.0
            row.rest = row.overdue if row.overdue <= may_be else least


@compiled
def ahead(rows: Rows, now: float, deadline: float, work: float, order: bool, slice: float) -> float:
    """Return the seconds of work that run before a request; see `PrefillTarget.ahead_s`.

    Args:
        work: of the request, seconds, calibrated.
        order: the worker serves by deadline, but for the `slice` seconds of its current batch.
    """
    total = 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        if now + row.rest <= row.deadline:
            before = row.deadline <= deadline
        else:
            before = deadline == np.inf and row.rest <= work
        if before or not order:
            total += row.rest
        elif i == 0:
            total += min(row.rest, slice)
    return total


@compiled
def rest(rows: Rows) -> float:
    """Return the seconds of work that are left of all prompts."""
    total = 0.0
    for i in range(rows.shape[0]):
        total += rows[i].rest
    return total


@compiled
def begun(rows: Rows, factor: float) -> float:
    """Return the work that is taken to be done of all prompts, uncalibrated, seconds."""
    total = 0.0
    for i in range(rows.shape[0]):
        total += max(rows[i].work - rows[i].rest / factor, 0.0)
    return total


@compiled
def committed(rows: Rows, now: float, order: bool, found: Any) -> int:
    """Fill `found` with (deadline, seconds) of prompts that cannot be passed; return how many."""
    count = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        if not order or now + row.rest <= row.deadline:
            found[count, 0] = row.deadline if order else -np.inf
            found[count, 1] = row.rest
            count += 1
    return count
