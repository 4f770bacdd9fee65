"""Take upstream's running batch apart for one step and put it together again.

Upstream's own `filter_batch` and `merge_batch` do the work. They rebind the tensors of the batch
that they are called on, but share a few mutable objects between copies: the sampling information
and its lists, and the penalizers, which point back at their batch. Each part gets its own.
"""

import copy
from typing import Any


def split(batch: Any, run: list[int], skip: list[int]) -> Any:
    """Leave the requests at `run` in the upstream `ScheduleBatch`; returns a batch of those at
    `skip`. Both lists are ascending positions, together all of them, neither empty."""
    skipped = _own(batch)
    skipped.filter_batch(keep_indices=skip)
    batch.filter_batch(keep_indices=run)
    return skipped


def merged(ran: Any, skipped: Any) -> Any:
    """A new batch of the requests of both. The batch that ran stays as it is: upstream still reads
    it as the one in flight."""
    whole = _own(ran)
    whole.merge_batch(skipped)
    return whole


def _own(batch: Any) -> Any:
    """A copy that can be filtered and merged without a trace in `batch`."""
    own = copy.copy(batch)
    info = own.sampling_info = copy.copy(batch.sampling_info)
    for name, value in vars(info).items():
        if isinstance(value, list | dict):
            setattr(info, name, copy.copy(value))
    orchestrator = info.penalizer_orchestrator
    if orchestrator is not None:
        # No penalty is in use where batches are split, so there is no state to copy; but a request
        # that joins later may bring one, and each penalizer must then find this batch.
        fresh = info.penalizer_orchestrator = copy.copy(orchestrator)
        fresh.penalizers = {kind: kind(fresh) for kind in orchestrator.penalizers}
        fresh.batch = own
    return own
