"""Compiled inner loops of a simulated decode instance."""

from typing import Any

from kairos.policy.compiled import compiled
from kairos.policy.slack_kernel import running_step_s


@compiled
def launch(
    rows: Any, before: Any, known: int, table: Any, end: float, batch: Any
) -> tuple[float, int, bool]:
    """Take the rows that run into a step: from now on they count the token that it makes.

    Args:
        before: `runs` of the first `known` rows in the step before.
        end: when the step is going to end.
        batch: filled with the ids that run.

    Returns:
        seconds of the step, how many run, and whether one of the known rows runs now and did not
        before, or the other way round.
    """
    seconds = running_step_s(rows, table, 1.0)
    running, changed = 0, False
    for i in range(rows.shape[0]):
        row = rows[i]
        if i < known and row.runs != before[i]:
            changed = True
        if row.runs:
            batch[running] = row.id
            running += 1
            row.output_tokens += 1
            row.context_tokens += 1
            row.last_token_s = end
    return seconds, running, changed


@compiled
def emit(
    batch: Any,
    now: float,
    outputs: Any,
    made: Any,
    first: Any,
    last: Any,
    stall: Any,
    finished: Any,
) -> int:
    """Give every request of `batch` its token, made at `now`; who has all its tokens gets none.

    Fills `finished` with the ids that have all their tokens now, and stall[id] with the longest
    wait between two tokens.

    Returns:
        how many finished.
    """
    count = 0
    for i in range(batch.shape[0]):
        request = batch[i]
        if made[request] + 1 >= outputs[request]:
            continue
        # A first token held back for a planned start is out by the time of the second one.
        first[request] = min(first[request], now)
        last[request] = max(last[request], first[request])
        stall[request] = max(stall[request], now - min(last[request], now))
        made[request] += 1
        last[request] = now
        if made[request] + 1 >= outputs[request]:
            finished[count] = request
            count += 1
    return count
