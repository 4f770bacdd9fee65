"""Upstream's queues of disaggregated serving, as Kairos uses them."""

from typing import TYPE_CHECKING, Protocol

from sglang.srt.kairos.upstream.memory import ReqToMetadataIdxAllocator
from sglang.srt.kairos.upstream.requests import Req

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream.scheduler import Scheduler


class PrefillBootstrapQueue(Protocol):
    """`sglang.srt.disaggregation.prefill.PrefillBootstrapQueue`: prompts before the handshake."""

    @property
    def queue(self) -> list[Req]: ...
    @property
    def scheduler(self) -> "Scheduler": ...
    @property
    def req_to_metadata_buffer_idx_allocator(self) -> ReqToMetadataIdxAllocator: ...
