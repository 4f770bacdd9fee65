"""Upstream's sampling state of a batch, as Kairos uses it."""

from typing import Protocol


class PenalizerFactory(Protocol):
    """`sglang.srt.sampling.penaltylib.orchestrator._BatchedPenalizer`: a class of penalizers."""

    def __call__(self, orchestrator: "BatchedPenalizerOrchestrator", /) -> object: ...


class BatchedPenalizerOrchestrator(Protocol):
    """`sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator`.

    It holds the penalties of a batch.
    """

    penalizers: dict[PenalizerFactory, object]
    batch: object

    @property
    def is_required(self) -> bool:
        """Whether a request of the batch uses a penalty."""


class SamplingBatchInfo(Protocol):
    """`sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo`: sampling options of a batch."""

    penalizer_orchestrator: BatchedPenalizerOrchestrator | None
