"""Compiled inner loops of a simulated decode instance."""

from typing import Any

from kairos.policy.compiled import compiled
from kairos.policy.slack_kernel import running_step_s


@compiled
def true_step(rows: Any, before: Any, known: int, table: Any) -> tuple[float, int, bool]:
    """Seconds of the step of the rows that run, how many they are, and whether one of the first
    `known` rows runs now and did not before, or the other way round."""
    running, changed = 0, False
    for i in range(rows.shape[0]):
        running += rows[i].runs
        if i < known and rows[i].runs != before[i]:
            changed = True
    return running_step_s(rows, table, 1.0), running, changed


@compiled
def emit(rows: Any, now: float, outputs: Any, finished: Any, stall: Any) -> int:
    """Give every row that runs its token, made at `now`.

    Fills `finished` with the ids that have all their tokens, and stall[id] with the longest wait
    between two tokens.

    Returns:
        how many finished.
    """
    count = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        if not row.runs:
            continue
        stall[row.id] = max(stall[row.id], now - row.last)
        row.tokens += 1
        row.context += 1
        row.last = now
        if row.tokens + 1 >= outputs[row.id]:
            finished[count] = row.id
            count += 1
    return count
