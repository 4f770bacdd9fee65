"""The record of one request: how it ended and when its tokens came."""

import itertools
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from kairos.replay.plan.plan import PlannedRequest


class RequestOutcome(StrEnum):
    """How a request ended. Everything but OK misses both objectives."""

    OK = "ok"
    HTTP_ERROR = "http_error"  # a status other than 200
    STREAM_ERROR = "stream_error"  # an error event, or bytes that are no token stream
    ABORTED = "aborted"  # the server gave the request up
    INCOMPLETE = "incomplete"  # the stream ended before the last token
    CONNECTION_ERROR = "connection_error"  # refused, reset, broken
    TIMEOUT = "timeout"  # its own time limit
    CUT = "cut"  # the run ended first: its budget, or a server that died
    INTERNAL_ERROR = "internal_error"  # a bug in the client


class RequestRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One request. Times count from the moment the request was due, on the client's clock.

    Attributes:
        rid: id the servers know it by.
        arrival_s: when it was due, seconds from the start of the replay.
        send_lag_ms: how much later its headers went out; None when they never did.
        input_tokens, output_tokens: lengths asked for.
        got_tokens: output tokens received.
        prompt_tokens: length of the prompt as reported by the server, where it reports one.
        cached_tokens: prefix hit as reported by the server, where it reports one.
        expected_cached_tokens: prefix hit as the load calculation expected it.
        slo_ttft_ms, slo_tpot_ms, slo_class: what it had to meet.
        ttft_ms: first token; None when there was none.
        tpot_ms: (last - first) / (tokens - 1); None below two tokens.
        tpot_engine_ms: the same on the engine's clock, from the start of the first decode step
            with it to the end of the last; None where the device was not traced.
        worst_gap_ms: longest pause between two tokens; None below two tokens.
        token_gaps_ms: all pauses, got_tokens - 1 of them, rounded to 0.1 ms.
        outcome: how it ended; exactly one.
        reason: the error behind an outcome other than ok.
        instance: "prefill-0>decode-0", as far as the client knows it.
    """

    rid: str
    arrival_s: float
    send_lag_ms: float | None = None
    input_tokens: int
    output_tokens: int
    got_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    expected_cached_tokens: int = 0
    slo_ttft_ms: float
    slo_tpot_ms: float
    slo_class: str
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    tpot_engine_ms: float | None = None
    worst_gap_ms: float | None = None
    outcome: RequestOutcome
    reason: str = ""
    instance: str = ""
    token_gaps_ms: list[float] = msgspec.field(default_factory=list)

    @property
    def ttft_met(self) -> bool:
        return (
            self.outcome is RequestOutcome.OK
            and self.ttft_ms is not None
            and self.ttft_ms <= self.slo_ttft_ms
        )

    @property
    def tpot_met(self) -> bool:
        """A single token has no TPOT and cannot miss it."""
        return self.outcome is RequestOutcome.OK and (
            self.tpot_ms is None or self.tpot_ms <= self.slo_tpot_ms
        )

    @property
    def met(self) -> bool:
        return self.ttft_met and self.tpot_met

    @property
    def prefix_hit(self) -> int:
        """Tokens that needed no prefill: as reported, else as expected; one always does."""
        if self.cached_tokens is None:
            return self.expected_cached_tokens
        return min(self.cached_tokens, self.input_tokens - 1)

    @property
    def end_s(self) -> float:
        """When the last token came, or the request was due if none did."""
        if self.ttft_ms is None:
            return self.arrival_s
        decode_ms = (self.tpot_ms or 0.0) * (self.got_tokens - 1)
        return self.arrival_s + (self.ttft_ms + decode_ms) / 1e3


def make_record(
    planned: PlannedRequest,
    rid: str,
    outcome: RequestOutcome,
    *,
    reason: str = "",
    send_lag_s: float | None = None,
    token_times_s: Sequence[float] = (),
    prompt_tokens: int | None = None,
    cached_tokens: int | None = None,
    instance: str = "",
) -> RequestRecord:
    """Account for one request.

    Args:
        send_lag_s: seconds from due to sent.
        token_times_s: when each token came, seconds from due, not decreasing.
    """
    times = token_times_s
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(times)]
    return RequestRecord(
        rid=rid,
        arrival_s=planned.request.arrival_s,
        send_lag_ms=None if send_lag_s is None else round(1e3 * send_lag_s, 3),
        input_tokens=planned.request.input_tokens,
        output_tokens=planned.request.output_tokens,
        got_tokens=len(times),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        expected_cached_tokens=planned.cached_tokens,
        slo_ttft_ms=planned.slo.ttft_ms,
        slo_tpot_ms=planned.slo.tpot_ms,
        slo_class=planned.slo.slo_class,
        ttft_ms=1e3 * times[0] if times else None,
        tpot_ms=1e3 * (times[-1] - times[0]) / (len(times) - 1) if gaps else None,
        worst_gap_ms=max(gaps) if gaps else None,
        token_gaps_ms=[round(gap, 1) for gap in gaps],
        outcome=outcome,
        reason=reason,
        instance=instance,
    )
