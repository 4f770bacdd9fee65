"""The border to SGLang: Protocols of exactly the members that Kairos uses of upstream's classes.

A Protocol is named like its upstream class, and its docstring begins with that class' full name.
`test/unit/sglang_kairos/test_upstream_border.py` compares every member with the installed SGLang.
A member that Kairos only reads is a property here, so that stand-ins may have a narrower type.
`kairos` attributes are Kairos' own.
"""

from sglang.srt.kairos.upstream.batches import (
    ForwardMode,
    HostTensor,
    PrebuiltBatch,
    ScheduleBatch,
)
from sglang.srt.kairos.upstream.decode import (
    DecodePreallocQueue,
    DecodeRequest,
    DecodeTransferQueue,
    DeviceTimer,
    DeviceTimeReporter,
    MLPSyncBatchInfo,
    PreallocationScheduler,
    RetractedRequests,
    ScheduledPreallocQueue,
    SchedulerBatchResultProcessor,
    SchedulerOutputStreamer,
    StepScheduler,
)
from sglang.srt.kairos.upstream.memory import (
    BasePrefixCache,
    BaseTokenToKVPoolAllocator,
    ReqToMetadataIdxAllocator,
    ReqToTokenPool,
)
from sglang.srt.kairos.upstream.prefill import (
    PlanningScheduler,
    PrefillAdder,
    PrefillBatch,
    PrefillBootstrapQueue,
)
from sglang.srt.kairos.upstream.requests import (
    AbortReq,
    BaseFinishReason,
    Req,
    SamplingParams,
    SchedulerReqTimeStats,
)
from sglang.srt.kairos.upstream.sampling import (
    BatchedPenalizer,
    BatchedPenalizerOrchestrator,
    PenalizerFactory,
    SamplingBatchInfo,
)
from sglang.srt.kairos.upstream.scheduler import (
    DisaggregationMode,
    LoadSnapshot,
    LoRAManager,
    ModelConfig,
    ModelRunner,
    SchedulePolicy,
    Scheduler,
    SchedulerLoadInquirer,
    SchedulerMetricsCollector,
    SchedulerMetricsReporter,
    SpeculativeAlgorithm,
    TpModelWorker,
)
from sglang.srt.kairos.upstream.server import (
    GenerateReqInput,
    GetInternalStateReqOutput,
    SamplingFields,
    ServerArgs,
)

__all__ = [
    "AbortReq",
    "BaseFinishReason",
    "BasePrefixCache",
    "BaseTokenToKVPoolAllocator",
    "BatchedPenalizer",
    "BatchedPenalizerOrchestrator",
    "DecodePreallocQueue",
    "DecodeRequest",
    "DecodeTransferQueue",
    "DeviceTimeReporter",
    "DeviceTimer",
    "DisaggregationMode",
    "ForwardMode",
    "GenerateReqInput",
    "GetInternalStateReqOutput",
    "HostTensor",
    "LoRAManager",
    "LoadSnapshot",
    "MLPSyncBatchInfo",
    "ModelConfig",
    "ModelRunner",
    "PenalizerFactory",
    "PlanningScheduler",
    "PreallocationScheduler",
    "PrebuiltBatch",
    "PrefillAdder",
    "PrefillBatch",
    "PrefillBootstrapQueue",
    "Req",
    "ReqToMetadataIdxAllocator",
    "ReqToTokenPool",
    "RetractedRequests",
    "SamplingBatchInfo",
    "SamplingFields",
    "SamplingParams",
    "ScheduleBatch",
    "SchedulePolicy",
    "ScheduledPreallocQueue",
    "Scheduler",
    "SchedulerBatchResultProcessor",
    "SchedulerLoadInquirer",
    "SchedulerMetricsCollector",
    "SchedulerMetricsReporter",
    "SchedulerOutputStreamer",
    "SchedulerReqTimeStats",
    "ServerArgs",
    "SpeculativeAlgorithm",
    "StepScheduler",
    "TpModelWorker",
]
