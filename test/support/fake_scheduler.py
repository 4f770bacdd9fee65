"""Stand-ins for upstream's scheduler and its parts, as Kairos finds them on an idle server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sglang.srt.kairos import upstream
from sglang.srt.kairos.state import KairosState


@dataclass
class FakePool:
    """Stands in for upstream's KV allocator, prefix cache and pool of rows."""

    available: int = 0
    evictable: int = 0
    page_size: int = 1

    def available_size(self) -> int:
        return self.available

    def evictable_size(self) -> int:
        return self.evictable


@dataclass
class FakeMode:
    """Stands in for upstream's `DisaggregationMode`."""

    value: str


class FakeSpeculation:
    """Stands in for upstream's `SpeculativeAlgorithm`, switched off."""

    def is_none(self) -> bool:
        return True


@dataclass
class FakeServerArgs:
    """Stands in for upstream's `ServerArgs` of a server that Kairos supports."""

    disaggregation_mode: str = "null"
    disaggregation_decode_allocation_policy: str = "early"
    disaggregation_decode_enable_radix_cache: bool = False
    disaggregation_decode_host_receive_threshold: float = 1.0
    dp_size: int = 1
    attn_dp_size: int = 1
    dtype: str = "auto"
    enable_dp_attention: bool = False
    enable_two_batch_overlap: bool = False
    elastic_ep_backend: str | None = None
    enable_pd_role_switch: bool = False
    encoder_only: bool = False
    grpc_mode: bool = False
    grpc_port: int | None = None
    kv_cache_dtype: str = "auto"
    model_path: str = "m"
    pp_size: int = 1
    quantization: str | None = None
    retraction_policy: str = "default"
    smg_grpc_mode: bool = False
    speculative_algorithm: str | None = None
    tokenizer_worker_num: int = 1
    use_ray: bool = False


@dataclass
class FakeModelConfig:
    """Stands in for upstream's `ModelConfig`."""

    is_encoder_decoder: bool = False
    vocab_size: int = 1000
    context_len: int = 100_000


@dataclass
class FakeAdapters:
    """Stands in for upstream's `LoRAManager`, with room for `most` adapters; None: any number."""

    most: int | None = None

    def validate_lora_batch(self, lora_ids: set[str | None]) -> bool:
        return self.most is None or len(lora_ids) <= self.most


@dataclass
class FakeModelRunner:
    """Stands in for upstream's `ModelRunner`, without CUDA graphs."""

    lora_manager: FakeAdapters | None = None
    decode_cuda_graph_capture_bs: Sequence[int] = ()


@dataclass
class FakeWorker:
    """Stands in for upstream's `TpModelWorker`."""

    model_runner: FakeModelRunner = field(default_factory=FakeModelRunner)


@dataclass
class FakeMetricsCollector:
    """Stands in for upstream's `SchedulerMetricsCollector`."""

    labels: Mapping[str, object] = field(default_factory=dict)


@dataclass
class FakeMetricsReporter:
    """Stands in for upstream's `SchedulerMetricsReporter` of a server without metrics."""

    metrics_collector: FakeMetricsCollector | None = None
    current_scheduler_metrics_enabled: bool = True
    forward_pass_device_timer: None = None


@dataclass
class FakeLoad:
    """Stands in for upstream's `LoadSnapshot`."""

    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    max_running_requests: int = 8
    num_total_tokens: int | np.int64 = 0  # upstream sums counts of either kind
    max_total_num_tokens: int = 10_000


@dataclass
class FakeLoadInquirer:
    """Stands in for upstream's `SchedulerLoadInquirer`."""

    load: FakeLoad = field(default_factory=FakeLoad)

    def get_loads(self) -> FakeLoad:
        return self.load


@dataclass
class FakePolicy:
    """Stands in for upstream's `SchedulePolicy`; prefixes count as matched."""

    enable_priority_scheduling: bool = False
    priority_sign: int = -1  # larger values first, upstream's default
    tree_cache: FakePool = field(default_factory=FakePool)
    kairos: KairosState = field(init=False)

    def waiting_queue_prefix_matched(self, waiting_queue: list[upstream.Req]) -> bool:
        return True


class FakeBootstrapQueue:
    """Stands in for upstream's `PrefillBootstrapQueue`, empty."""

    def __init__(self) -> None:
        self.queue: list[upstream.Req] = []
        self.req_to_metadata_buffer_idx_allocator = FakePool(8)


@dataclass
class FakeTransferQueue:
    """Stands in for upstream's `DecodeTransferQueue`."""

    queue: list[upstream.DecodeRequest] = field(default_factory=list)

    def pop_transferred(self) -> list[upstream.Req]:
        return []


@dataclass
class FakeRetractedRequests:
    """Stands in for upstream's `DecodePreallocQueue`, as far as retraction goes."""

    retracted_queue: list[upstream.Req] = field(default_factory=list)


class FakeStreamer:
    """Stands in for upstream's `SchedulerOutputStreamer`."""

    def stream_output(self, reqs: Sequence[upstream.Req], return_logprob: bool) -> None:
        raise AssertionError("not on an idle scheduler")


class FakeScheduler:
    """Stands in for upstream's `Scheduler`, idle, with nothing on that Kairos would refuse."""

    kairos: KairosState
    running_batch: upstream.ScheduleBatch

    def __init__(self, role: str) -> None:
        self.disaggregation_mode = FakeMode(role)
        self.server_args = FakeServerArgs(disaggregation_mode=role)
        self.policy = FakePolicy()
        self.tp_worker = FakeWorker()
        self.model_config = FakeModelConfig()
        self.metrics_reporter = FakeMetricsReporter()
        self.load_inquirer = FakeLoadInquirer()
        self.tree_cache = FakePool()
        self.token_to_kv_pool_allocator = FakePool(10_000)
        self.req_to_token_pool = FakePool(8)
        self.disagg_prefill_bootstrap_queue = FakeBootstrapQueue()
        self.disagg_decode_prealloc_queue = FakeRetractedRequests()
        self.disagg_decode_transfer_queue = FakeTransferQueue()
        self.output_streamer = FakeStreamer()
        self._engine_paused = False
        self._pause_intervals: list[tuple[float, float]] = []
        self.spec_algorithm = FakeSpeculation()
        self.waiting_queue: list[upstream.Req] = []
        self.chunked_req: upstream.Req | None = None
        self._pending_chunked_abort_req: upstream.Req | None = None
        self.last_batch: upstream.ScheduleBatch | None = None
        self.forward_ct = 0
        self.tp_size = 1
        self.page_size = 1
        self.chunked_prefill_size: int | None = 2048
        self.max_total_num_tokens = 10_000
        self.max_running_requests = 8
        self.enable_overlap = True
        self.enable_lora = False
        self.enable_lora_overlap_loading = False
        self.enable_hierarchical_cache = False
        self.enable_decode_hicache = False
        self.enable_hisparse = False
        self.enable_pdmux = False
        self.enable_priority_scheduling = False
        self.is_generation = True
        self.is_hybrid_swa = False
        self.is_mixed_chunk = False
        self.truncation_align_size: int | None = None
        self.prefill_delayer: object | None = None
        self.dllm_config: object | None = None

    def can_schedule_lora_req(self, req: upstream.Req, running_loras: set[str | None]) -> bool:
        return True

    def optimistic_release_and_requeue(self, req: upstream.Req) -> None:
        raise AssertionError("not on an idle scheduler")


def fake_scheduler(role: str, **changes: object) -> FakeScheduler:
    """An idle scheduler on which nothing of Kairos is refused. `changes`: other attributes."""
    scheduler = FakeScheduler(role)
    for name, value in changes.items():
        assert hasattr(scheduler, name), name
        setattr(scheduler, name, value)
    return scheduler


# Checked by mypy.
_SCHEDULER: type[upstream.Scheduler] = FakeScheduler
_POLICY: type[upstream.SchedulePolicy] = FakePolicy
_SERVER_ARGS: type[upstream.ServerArgs] = FakeServerArgs
