"""Upstream's scheduler and its parts, as Kairos uses them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, SupportsInt

from sglang.srt.kairos.upstream.decode import (
    DeviceTimer,
    PreallocationScheduler,
    StepScheduler,
)
from sglang.srt.kairos.upstream.memory import BasePrefixCache, ReqToTokenPool
from sglang.srt.kairos.upstream.prefill import PlanningScheduler, PrefillBootstrapQueue
from sglang.srt.kairos.upstream.requests import Req

if TYPE_CHECKING:
    from sglang.srt.kairos.state import KairosState


class DisaggregationMode(Protocol):
    """`sglang.srt.disaggregation.utils.DisaggregationMode`: the role of a server."""

    @property
    def value(self) -> str:
        """`prefill`, `decode` or `null`."""


class SpeculativeAlgorithm(Protocol):
    """`sglang.srt.speculative.spec_info.SpeculativeAlgorithm`: how tokens are drafted."""

    def is_none(self) -> bool: ...


class SchedulePolicy(Protocol):
    """`sglang.srt.managers.schedule_policy.SchedulePolicy`: order of a waiting queue."""

    kairos: "KairosState"

    @property
    def enable_priority_scheduling(self) -> bool: ...
    @property
    def priority_sign(self) -> int: ...
    @property
    def tree_cache(self) -> BasePrefixCache: ...
    def waiting_queue_prefix_matched(self, waiting_queue: list[Req]) -> bool: ...


class LoadSnapshot(Protocol):
    """`sglang.srt.managers.load_snapshot.LoadSnapshot`: load of a scheduler."""

    @property
    def num_running_reqs(self) -> int: ...
    @property
    def num_waiting_reqs(self) -> int: ...
    @property
    def max_running_requests(self) -> int: ...
    @property
    def num_total_tokens(self) -> SupportsInt: ...
    @property
    def max_total_num_tokens(self) -> int: ...


class SchedulerLoadInquirer(Protocol):
    """`sglang.srt.managers.scheduler_components.load_inquirer.SchedulerLoadInquirer`: counts."""

    def get_loads(self) -> LoadSnapshot: ...


class SchedulerMetricsCollector(Protocol):
    """`sglang.srt.observability.metrics_collector.SchedulerMetricsCollector`: Prometheus."""

    @property
    def labels(self) -> Mapping[str, object]: ...


class LoRAManager(Protocol):
    """`sglang.srt.lora.lora_manager.LoRAManager`: LoRA adapters on the device."""

    def validate_lora_batch(self, lora_ids: set[str | None]) -> bool: ...


class ModelRunner(Protocol):
    """`sglang.srt.model_executor.model_runner.ModelRunner`: the model on its device."""

    @property
    def lora_manager(self) -> LoRAManager | None: ...

    @property
    def decode_cuda_graph_capture_bs(self) -> Sequence[int]:
        """Batch sizes for which CUDA graphs are captured."""


class TpModelWorker(Protocol):
    """`sglang.srt.managers.tp_worker.TpModelWorker`: owns the model of a rank."""

    @property
    def model_runner(self) -> ModelRunner: ...


class SchedulerMetricsReporter(Protocol):
    """`sglang.srt.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter`.

    It writes the log lines and metrics of a scheduler.
    """

    @property
    def metrics_collector(self) -> SchedulerMetricsCollector | None: ...
    @property
    def current_scheduler_metrics_enabled(self) -> bool:
        """Whether this rank reports its metrics."""

    @property
    def forward_pass_device_timer(self) -> DeviceTimer | None: ...


class ModelConfig(Protocol):
    """`sglang.srt.configs.model_config.ModelConfig`: the model's configuration."""

    @property
    def is_encoder_decoder(self) -> bool: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_len(self) -> int: ...


class Scheduler(PlanningScheduler, StepScheduler, PreallocationScheduler, Protocol):
    """`sglang.srt.managers.scheduler.Scheduler`: forms the batches of one rank."""

    kairos: "KairosState"

    # Parts.
    @property
    def req_to_token_pool(self) -> ReqToTokenPool: ...
    @property
    def load_inquirer(self) -> SchedulerLoadInquirer: ...
    @property
    def metrics_reporter(self) -> SchedulerMetricsReporter: ...
    # Options of the server.
    @property
    def disaggregation_mode(self) -> DisaggregationMode: ...
    @property
    def tp_size(self) -> int: ...
    @property
    def enable_lora_overlap_loading(self) -> bool: ...
    @property
    def enable_hierarchical_cache(self) -> bool: ...
    @property
    def is_generation(self) -> bool: ...
    @property
    def is_hybrid_swa(self) -> bool: ...
    @property
    def is_mixed_chunk(self) -> bool: ...
    @property
    def spec_algorithm(self) -> SpeculativeAlgorithm: ...
    @property
    def truncation_align_size(self) -> int | None: ...
    @property
    def prefill_delayer(self) -> object | None: ...
    @property
    def dllm_config(self) -> object | None: ...

    # Prefill servers.
    @property
    def disagg_prefill_bootstrap_queue(self) -> PrefillBootstrapQueue: ...

    # Decode servers.
    @property
    def max_running_requests(self) -> int: ...
    @property
    def enable_priority_scheduling(self) -> bool: ...
    @property
    def enable_decode_hicache(self) -> bool: ...
    @property
    def enable_hisparse(self) -> bool: ...
    @property
    def enable_pdmux(self) -> bool: ...
    @property
    def model_config(self) -> ModelConfig: ...
