"""A stand-in for upstream's request."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sglang.srt.kairos import upstream
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.request_state import RequestState

from kairos.slo import Slo


@dataclass
class FakeSamplingParams:
    """Stands in for upstream's `SamplingParams`."""

    custom_params: Mapping[str, object] | None = None
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0


class FakeTimeStats:
    """Stands in for upstream's `SchedulerReqTimeStats`."""

    def set_decode_prebuilt_finish_time(self) -> None:
        pass


@dataclass(eq=False)
class FakeReq:
    """Stands in for upstream's `Req`: the members that Kairos uses, with those of a new request."""

    rid: str
    origin_input_ids: Sequence[int]
    kairos: RequestState
    bootstrap_room: int | None = None
    output_ids: Sequence[int] = ()
    priority: int | None = None
    lora_id: str | None = None
    sampling_params: FakeSamplingParams = field(default_factory=FakeSamplingParams)
    to_finish: upstream.BaseFinishReason | None = None
    num_matched_prefix_tokens: int = 0
    prefix_len: int = 0
    extend_end: int | None = None
    pending_bootstrap: bool = False
    inflight_middle_chunks: int = 0
    bootstrap_host: str = "10.0.0.1"
    bootstrap_port: int | None = None
    finished_reason: upstream.BaseFinishReason | None = None
    beam_group: object | None = None
    is_retracted: bool = False
    return_logprob: bool = False
    time_stats: FakeTimeStats = field(default_factory=FakeTimeStats)

    def finished(self) -> bool:
        return self.finished_reason is not None

    def update_finish_state(self) -> None:
        pass


class FakeAbort:
    """Stands in for upstream's `BaseFinishReason` of an aborted request."""

    def to_json(self) -> dict[str, object]:
        return {"type": "abort"}


@dataclass(frozen=True)
class FakeAbortReq:
    """Stands in for upstream's `AbortReq`."""

    rid: str
    abort_all: bool = False


def fake_req(number: int, tokens: int, ttft_ms: float = 60_000, cached: int = 0) -> FakeReq:
    """A request that has just arrived.

    Args:
        number: its rid is `r` and this number.
        tokens: length of its prompt.
        ttft_ms: its objective.
        cached: tokens of its prompt in the radix cache; one is left to compute.
    """
    state = RequestState(RequestSlo(Slo(ttft_ms, 50), time.monotonic()), number)
    req = FakeReq(f"r{number}", [0] * tokens, state)
    req.num_matched_prefix_tokens = min(cached, tokens - 1)
    return req


# Checked by mypy.
_REQ: type[upstream.Req] = FakeReq
_ABORT_REQ: type[upstream.AbortReq] = FakeAbortReq
_FINISH_REASON: type[upstream.BaseFinishReason] = FakeAbort
