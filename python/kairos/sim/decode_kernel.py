"""Compiled inner loops of a simulated decode instance."""

from typing import Any

from kairos.policy.compiled import compiled


@compiled
def running_load(rows: Any) -> tuple[int, float, float]:
    """Return number, total context and longest context of the rows that run, in tokens."""
    batch, total, longest = 0, 0.0, 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        if row.runs:
            batch += 1
            total += row.context_tokens
            longest = max(longest, float(row.context_tokens))
    return batch, total, longest


@compiled
def launch(rows: Any, before: Any, end_s: float, batch: Any) -> tuple[int, bool]:
    """Start a step: rows that run count the token that it makes from now on.

    Args:
        rows: residents of the instance, see `kairos.policy.residents.ROW`.
        before: `runs` in the step before, of the first rows.
        end_s: predicted end of the step, seconds.
        batch: receives the ids of the rows that run.

    Returns:
        Number of rows that run, and whether a row of `before` has started or stopped running.
    """
    running, changed = 0, False
    for i in range(rows.shape[0]):
        row = rows[i]
        if i < before.shape[0] and row.runs != before[i]:
            changed = True
        if row.runs:
            batch[running] = row.id
            running += 1
            row.output_tokens += 1
            row.context_tokens += 1
            row.last_token_s = end_s
    return running, changed


@compiled
def emit(batch: Any, now_s: float, records: Any, finished: Any) -> int:
    """Give a token to every request of `batch` that has not got all its tokens yet.

    Args:
        batch: ids of the requests that ran in the step.
        now_s: end of the step, seconds.
        records: `SimRecords`, updated.
        finished: receives the ids of the requests that have all their tokens now.

    Returns:
        Number of requests that finished.
    """
    count = 0
    for i in range(batch.shape[0]):
        request = batch[i]
        if records.made[request] + 1 >= records.output_tokens[request]:
            continue
        # A first token held back for a planned start is out by the time of the second one.
        records.first_s[request] = min(records.first_s[request], now_s)
        records.last_s[request] = max(records.last_s[request], records.first_s[request])
        stall_s = now_s - min(records.last_s[request], now_s)
        records.stall_s[request] = max(records.stall_s[request], stall_s)
        records.made[request] += 1
        records.last_s[request] = now_s
        if records.made[request] + 1 >= records.output_tokens[request]:
            finished[count] = request
            count += 1
    return count
