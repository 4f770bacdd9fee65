"""Upstream's requests, as Kairos uses them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from sglang.srt.kairos.request_state import RequestState


class BaseFinishReason(Protocol):
    """`sglang.srt.managers.schedule_batch.BaseFinishReason`: why a request ended."""

    def to_json(self) -> Mapping[str, object]: ...


class SamplingParams(Protocol):
    """`sglang.srt.sampling.sampling_params.SamplingParams`: options of a request's output."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def custom_params(self) -> Mapping[str, object] | None: ...


class SchedulerReqTimeStats(Protocol):
    """`sglang.srt.observability.req_time_stats.SchedulerReqTimeStats`: times of a request."""

    def set_decode_prebuilt_finish_time(self) -> None: ...


class Req(Protocol):
    """`sglang.srt.managers.schedule_batch.Req`: one request in a scheduler."""

    kairos: RequestState
    num_matched_prefix_tokens: int

    @property
    def rid(self) -> str: ...
    @property
    def bootstrap_room(self) -> int | None: ...
    @property
    def origin_input_ids(self) -> Sequence[int]: ...
    @property
    def output_ids(self) -> Sequence[int]: ...
    @property
    def priority(self) -> int | None: ...
    @property
    def lora_id(self) -> str | None: ...
    @property
    def sampling_params(self) -> SamplingParams: ...
    @property
    def to_finish(self) -> BaseFinishReason | None: ...
    def finished(self) -> bool: ...

    # Prefill servers.
    @property
    def prefix_len(self) -> int: ...
    @property
    def extend_end(self) -> int | None:
        """Tokens computed after the current batch; None until a first part is computed."""

    @property
    def pending_bootstrap(self) -> bool: ...
    @property
    def inflight_middle_chunks(self) -> int: ...

    # Decode servers.
    @property
    def bootstrap_host(self) -> str: ...
    @property
    def bootstrap_port(self) -> int | None: ...
    @property
    def finished_reason(self) -> BaseFinishReason | None: ...
    @property
    def beam_group(self) -> object | None: ...
    @property
    def is_retracted(self) -> bool: ...
    @property
    def return_logprob(self) -> bool: ...
    @property
    def time_stats(self) -> SchedulerReqTimeStats: ...
    def update_finish_state(self) -> None: ...


class AbortReq(Protocol):
    """`sglang.srt.managers.io_struct.AbortReq`: the message that aborts requests."""

    @property
    def rid(self) -> str: ...
    @property
    def abort_all(self) -> bool: ...
