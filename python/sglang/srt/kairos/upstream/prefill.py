"""Upstream's prefill servers, as Kairos uses them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from sglang.srt.kairos.upstream.memory import (
    BasePrefixCache,
    BaseTokenToKVPoolAllocator,
    ReqToMetadataIdxAllocator,
)
from sglang.srt.kairos.upstream.requests import Req
from sglang.srt.kairos.upstream.server import ServerArgs

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream.scheduler import SchedulePolicy, TpModelWorker


class PrefillBootstrapQueue(Protocol):
    """`sglang.srt.disaggregation.prefill.PrefillBootstrapQueue`: prompts before the handshake."""

    @property
    def queue(self) -> list[Req]: ...
    @property
    def req_to_metadata_buffer_idx_allocator(self) -> ReqToMetadataIdxAllocator: ...


class PrefillBatch(Protocol):
    """`sglang.srt.managers.schedule_batch.ScheduleBatch`, as planned prefill uses it."""

    @property
    def reqs(self) -> Sequence[Req]: ...
    @property
    def forward_iter(self) -> int:
        """Number of the forward pass."""

    @property
    def launch_ts(self) -> float:
        """Monotonic seconds."""

    @property
    def after_idle_gap(self) -> bool:
        """Nothing ran before this batch."""


class PrefillAdder(Protocol):
    """`sglang.srt.managers.schedule_policy.PrefillAdder`: forms one prefill batch."""

    chunked_req_limit: int | None
    """Most tokens of the continued prompt."""

    def add_chunked_req(self, req: Req) -> Req | None: ...
    def _select_prefill_admission(
        self,
        req: Req,
        *,
        total_tokens: int,
        host_hit_length: int,
        swa_host_hit_length: int,
        truncation_align_size: int | None,
        has_chunked_req: bool = False,
    ) -> object: ...


class PlanningScheduler(Protocol):
    """`sglang.srt.managers.scheduler.Scheduler`, as planned prefill uses it."""

    waiting_queue: list[Req]
    chunked_req: Req | None
    """The started prompt that upstream continues before it looks at the queue."""
    _pending_chunked_abort_req: Req | None
    chunked_prefill_size: int | None

    @property
    def server_args(self) -> ServerArgs: ...
    @property
    def policy(self) -> "SchedulePolicy": ...
    @property
    def tp_worker(self) -> "TpModelWorker": ...
    @property
    def tree_cache(self) -> BasePrefixCache: ...
    @property
    def token_to_kv_pool_allocator(self) -> BaseTokenToKVPoolAllocator: ...
    @property
    def page_size(self) -> int: ...
    @property
    def max_total_num_tokens(self) -> int: ...
    @property
    def enable_overlap(self) -> bool: ...
    @property
    def enable_lora(self) -> bool: ...
    @property
    def forward_ct(self) -> int:
        """Forward passes launched so far."""

    def optimistic_release_and_requeue(self, req: Req) -> None: ...
