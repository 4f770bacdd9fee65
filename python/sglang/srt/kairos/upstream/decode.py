"""Upstream's decode servers, as Kairos uses them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from sglang.srt.kairos.upstream.batches import ScheduleBatch
from sglang.srt.kairos.upstream.memory import ReqToMetadataIdxAllocator, ReqToTokenPool
from sglang.srt.kairos.upstream.requests import Req
from sglang.srt.kairos.upstream.server import ServerArgs

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream.scheduler import Scheduler


class DecodeRequest(Protocol):
    """`sglang.srt.disaggregation.decode.DecodeRequest`: a request before it runs."""

    waiting_for_input: bool
    """The handshake is done, and the request waits for memory."""

    @property
    def req(self) -> Req: ...


class DecodeTransferQueue(Protocol):
    """`sglang.srt.disaggregation.decode.DecodeTransferQueue`: requests whose KV is on its way."""

    @property
    def queue(self) -> Sequence[DecodeRequest]: ...
    def pop_transferred(self) -> list[Req]: ...


class RetractedRequests(Protocol):
    """`sglang.srt.disaggregation.decode.DecodePreallocQueue`, as far as retraction goes."""

    @property
    def retracted_queue(self) -> list[Req]: ...


class DecodePreallocQueue(RetractedRequests, Protocol):
    """`sglang.srt.disaggregation.decode.DecodePreallocQueue`: requests that wait for memory."""

    @property
    def queue(self) -> list[DecodeRequest]: ...
    @property
    def num_reserved_decode_tokens(self) -> int: ...
    @property
    def req_to_token_pool(self) -> ReqToTokenPool: ...
    @property
    def req_to_metadata_buffer_idx_allocator(self) -> ReqToMetadataIdxAllocator: ...
    def _allocatable_token_budgets(
        self, retractable_tokens: int | None = None, count_retracted: bool = True
    ) -> int: ...


class ScheduledPreallocQueue(DecodePreallocQueue, Protocol):
    """`sglang.srt.disaggregation.decode.DecodePreallocQueue`, with its scheduler."""

    @property
    def scheduler(self) -> "Scheduler": ...


class SchedulerOutputStreamer(Protocol):
    """`sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer`.

    It sends tokens to the detokenizer.
    """

    def stream_output(self, reqs: list[Req], return_logprob: bool) -> None: ...


class SchedulerBatchResultProcessor(Protocol):
    """Hands the results of a batch to its requests.

    `sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor`.
    """


class MLPSyncBatchInfo(Protocol):
    """`sglang.srt.managers.scheduler_components.dp_attn.MLPSyncBatchInfo`.

    It is what data-parallel ranks tell each other before every step.
    """

    @property
    def global_num_tokens(self) -> Sequence[int]: ...
    @property
    def global_attention_pairs(self) -> Sequence[int]: ...


class DeviceTimer(Protocol):
    """`sglang.srt.utils.device_timer.DeviceTimer`: measures forward passes on the device."""

    def add_reporter(self, reporter: "DeviceTimeReporter") -> None: ...


class DeviceTimeReporter(Protocol):
    """A function that `DeviceTimer` calls once per measured forward pass."""

    def __call__(self, t: float, category: str, **metadata: object) -> None:
        """Report one pass.

        Args:
            t: seconds on the device.
            category: kind of the pass; `decode` for a decode step.
            metadata: further fields of upstream.
        """


class StepScheduler(Protocol):
    """`sglang.srt.managers.scheduler.Scheduler`, as a decode step uses it."""

    running_batch: ScheduleBatch

    @property
    def last_batch(self) -> ScheduleBatch | None:
        """The batch that was launched last."""

    @property
    def output_streamer(self) -> SchedulerOutputStreamer: ...
    @property
    def _engine_paused(self) -> bool:
        """Whether `Scheduler.pause_generation` has been asked for."""

    @property
    def _pause_intervals(self) -> Sequence[tuple[float, float]]:
        """Pauses that have ended, by this rank's clock; `Scheduler.pause_generation` starts one."""


class PreallocationScheduler(Protocol):
    """`sglang.srt.managers.scheduler.Scheduler`, as preallocation uses it."""

    waiting_queue: list[Req]
    """Requests whose KV has arrived and that join the running batch next."""

    @property
    def running_batch(self) -> ScheduleBatch: ...
    @property
    def server_args(self) -> ServerArgs: ...
    @property
    def max_total_num_tokens(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def enable_lora(self) -> bool: ...
    @property
    def disagg_decode_transfer_queue(self) -> DecodeTransferQueue: ...
    @property
    def disagg_decode_prealloc_queue(self) -> RetractedRequests: ...
    def can_schedule_lora_req(self, req: Req, running_loras: set[str | None]) -> bool: ...
