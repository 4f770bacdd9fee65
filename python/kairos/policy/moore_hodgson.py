"""Moore-Hodgson: which jobs can all end by their deadlines, compiled.

Jobs are taken in the order of their deadlines. Whenever their work ends after the deadline of the
newest one, the largest job is deferred. For equal keys and one machine no larger set of jobs can
meet its deadlines.
"""

from typing import Any

import numpy as np

from kairos.policy.compiled import compiled

FEASIBLE, DEFERRED, INFEASIBLE = 0, 1, 2
"""States of a job: it can meet its deadline beside the other feasible ones; it could alone, but is
displaced by others; it cannot meet its deadline."""


@compiled
def _above(key: float, member: int, other_key: float, other: int) -> bool:
    """Return whether an entry of a heap precedes another: the larger key, then the lower member."""
    return key > other_key or (key == other_key and member < other)


@compiled
def push(keys: Any, members: Any, size: int, key: float, member: int) -> None:
    """Insert an entry into the max-heap keys[:size]."""
    at = size
    while at > 0:
        above = (at - 1) // 2
        if not _above(key, member, keys[above], members[above]):
            break
        keys[at], members[at] = keys[above], members[above]
        at = above
    keys[at], members[at] = key, member


@compiled
def pop(keys: Any, members: Any, size: int) -> int:
    """Remove the largest key of the max-heap keys[:size] and return its member."""
    top = members[0]
    key, member = keys[size - 1], members[size - 1]
    size -= 1
    at = 0
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        if below + 1 < size and _above(
            keys[below + 1], members[below + 1], keys[below], members[below]
        ):
            below += 1
        if not _above(keys[below], members[below], key, member):
            break
        keys[at], members[at] = keys[below], members[below]
        at = below
    keys[at], members[at] = key, member
    return int(top)


@compiled
def defer_overload(work_s: Any, sort_keys: Any, due_s: Any, end_s: float, state: Any) -> None:
    """Defer the fewest feasible jobs so that all the others end by their due times.

    Args:
        work_s: duration of each job, seconds. Jobs are in the order of their deadlines.
        sort_keys: the job with the largest key is deferred first; of equal ones the latest.
        due_s: when each job has to end. A due time before the deadline leaves time to jobs that
            have not arrived yet; then one job may displace several.
        end_s: when the first job starts.
        state: FEASIBLE or INFEASIBLE for each job; deferred jobs are set to DEFERRED.
    """
    n = work_s.shape[0]
    keys, members = np.empty(n), np.empty(n, np.int64)
    size = 0
    for i in range(n):
        if state[i] != FEASIBLE:
            continue
        push(keys, members, size, sort_keys[i], -i)
        size += 1
        end_s += work_s[i]
        while end_s > due_s[i] and size > 0:
            largest = -pop(keys, members, size)
            size -= 1
            state[largest] = DEFERRED
            end_s -= work_s[largest]
