"""Upstream's sampling state of a batch, as Kairos uses it."""

import weakref
from typing import Protocol


class BatchedPenalizer(Protocol):
    """`sglang.srt.sampling.penaltylib.orchestrator._BatchedPenalizer`: one kind of penalty."""

    _orchestrator_ref: "weakref.ref[BatchedPenalizerOrchestrator]"


class PenalizerFactory(Protocol):
    """`sglang.srt.sampling.penaltylib.orchestrator._BatchedPenalizer`: a class of penalizers."""

    def __call__(self, orchestrator: "BatchedPenalizerOrchestrator", /) -> BatchedPenalizer: ...


class BatchedPenalizerOrchestrator(Protocol):
    """`sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator`.

    It holds the penalties of a batch.
    """

    penalizers: dict[PenalizerFactory, BatchedPenalizer]
    batch: object
    is_required: bool
    """Whether a request of the batch uses a penalty."""


class SamplingBatchInfo(Protocol):
    """`sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo`: sampling options of a batch."""

    penalizer_orchestrator: BatchedPenalizerOrchestrator | None
