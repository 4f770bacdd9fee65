"""Taking upstream's running batch apart for one step, and putting it together again.

Upstream's own `filter_batch` and `merge_batch` do the work. They rebind the tensors of the batch
that they are called on. A few mutable objects are shared between copies of a batch: the sampling
information with its lists, and the penalizers, which point back at their batch. Each part of a
split batch gets its own.

Requests with penalties run in every step, so the counts behind penalties stay with the selected
requests. A skipped request has no penalty, so that its row in a penalizer has no effect.
"""

import copy
import weakref
from typing import NamedTuple

from sglang.srt.kairos.upstream import (
    BatchedPenalizer,
    BatchedPenalizerOrchestrator,
    ScheduleBatch,
)


class SplitBatch(NamedTuple):
    """A running batch that is split for a step, which is not launched yet.

    Attributes:
        selected: upstream's batch of the requests that run in the step.
        skipped: batch of the other requests.
    """

    selected: ScheduleBatch
    skipped: ScheduleBatch

    def merged(self) -> ScheduleBatch:
        """Return a batch of all requests that are left, the selected ones first."""
        return merged(self.selected, self.skipped) if self.selected.reqs else self.skipped


class LaunchedSplit(NamedTuple):
    """A split batch whose step is launched.

    Attributes:
        selected: upstream's batch in flight.
        skipped: batch of the other requests.
        merged: the running batch of all requests.
    """

    selected: ScheduleBatch
    skipped: ScheduleBatch
    merged: ScheduleBatch


def split(batch: ScheduleBatch, run: list[int], skip: list[int]) -> SplitBatch:
    """Split a batch in place.

    Args:
        batch: keeps the requests at `run`.
        run: ascending positions of the selected requests, not empty.
        skip: ascending positions of the others, not empty. None of them has a penalty.
    """
    skipped = _own(batch)
    if (penalties := skipped.sampling_info.penalizer_orchestrator) is not None:
        penalties.penalizers = {kind: kind(penalties) for kind in penalties.penalizers}
        penalties.is_required = False
    skipped.filter_batch(keep_indices=skip)
    batch.filter_batch(keep_indices=run)
    return SplitBatch(batch, skipped)


def merged(selected: ScheduleBatch, skipped: ScheduleBatch) -> ScheduleBatch:
    """Return a new batch of the requests of both.

    `selected` stays as it is, because upstream still reads it as the batch in flight.
    """
    whole = _own(selected)
    whole.merge_batch(skipped)
    return whole


def _own(batch: ScheduleBatch) -> ScheduleBatch:
    """Return a copy that can be filtered and merged without a trace in `batch`."""
    own = copy.copy(batch)
    info = own.sampling_info = copy.copy(batch.sampling_info)
    for name, value in vars(info).items():
        if isinstance(value, list | dict):
            setattr(info, name, copy.copy(value))
    orchestrator = info.penalizer_orchestrator
    if orchestrator is not None:
        fresh = info.penalizer_orchestrator = copy.copy(orchestrator)
        fresh.penalizers = {
            kind: _copied(penalizer, fresh) for kind, penalizer in orchestrator.penalizers.items()
        }
        fresh.batch = own
    return own


def _copied(
    penalizer: BatchedPenalizer, orchestrator: BatchedPenalizerOrchestrator
) -> BatchedPenalizer:
    """Return a copy of a penalizer that finds its batch through `orchestrator`.

    It shares the tensors until it is filtered or merged, which rebinds them. Counting writes into
    them, and happens after that only.
    """
    copied = copy.copy(penalizer)
    copied._orchestrator_ref = weakref.ref(orchestrator)
    return copied
