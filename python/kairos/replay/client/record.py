"""The record of one request: its outcome and the times of its tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from kairos.replay.plan.plan import PlannedRequest


class RequestOutcome(StrEnum):
    """How a request ended. Every outcome except OK misses both objectives."""

    OK = "ok"
    HTTP_ERROR = "http_error"  # a status other than 200
    STREAM_ERROR = "stream_error"  # an error event, or bytes that are no token stream
    ABORTED = "aborted"  # the server aborted the request
    INCOMPLETE = "incomplete"  # the stream ended before the last token
    CONNECTION_ERROR = "connection_error"  # refused, reset or closed early
    TIMEOUT = "timeout"  # the time limit of the request
    CUT = "cut"  # the run ended first, by its budget or because a server died
    INTERNAL_ERROR = "internal_error"  # a bug in the client


class RequestRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One request. Times count from the moment the request was due, on the client's clock.

    Attributes:
        rid: id by which the servers know the request.
        arrival_s: time at which the request was due, seconds from the start of the replay.
        send_lag_ms: time from due until the headers left; None if they never left.
        input_tokens: prompt length requested.
        output_tokens: output length requested.
        got_tokens: output tokens received.
        prompt_tokens: prompt length that the server reported; None without a report.
        cached_tokens: prefix hit that the server reported; None without a report.
        expected_cached_tokens: prefix hit that the load calculation expects.
        slo_ttft_ms: TTFT objective.
        slo_tpot_ms: TPOT objective.
        slo_class: class of the SLO.
        ttft_ms: time of the first token; None without a token.
        tpot_ms: (last - first) / (tokens - 1); None below two tokens.
        tpot_engine_ms: the same on the engine's clock, from the start of the request's first decode
            step to the end of its last; None without a device trace.
        worst_gap_ms: longest pause between two tokens; None below two tokens.
        outcome: how the request ended; exactly one.
        reason: error behind an outcome other than OK.
        instance: servers such as "prefill-0>decode-0", as far as the client knows them.
        token_gaps_ms: all pauses, got_tokens - 1 of them, rounded to 0.1 ms.
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
        """Whether the request succeeded and met its TTFT objective."""
        return (
            self.outcome is RequestOutcome.OK
            and self.ttft_ms is not None
            and self.ttft_ms <= self.slo_ttft_ms
        )

    @property
    def tpot_met(self) -> bool:
        """Whether the request succeeded and met its TPOT objective; one token cannot miss it."""
        return self.outcome is RequestOutcome.OK and (
            self.tpot_ms is None or self.tpot_ms <= self.slo_tpot_ms
        )

    @property
    def met(self) -> bool:
        """Whether the request met both objectives."""
        return self.ttft_met and self.tpot_met

    @property
    def prefix_hit(self) -> int:
        """Prompt tokens that needed no prefill: as reported, else as expected.

        At least one token of a prompt is always computed.
        """
        if self.cached_tokens is None:
            return self.expected_cached_tokens
        return min(self.cached_tokens, self.input_tokens - 1)

    @property
    def end_s(self) -> float:
        """Time of the last token, or the due time without a token; seconds from the start."""
        if self.ttft_ms is None:
            return self.arrival_s
        decode_ms = (self.tpot_ms or 0.0) * (self.got_tokens - 1)
        return self.arrival_s + (self.ttft_ms + decode_ms) / 1e3


@dataclass(frozen=True, slots=True)
class ReceivedTokens:
    """The response that the client received for a request.

    Attributes:
        send_lag_s: seconds from due until the request left; None if it never left.
        times_s: arrival of each token, seconds from due, not decreasing.
        prompt_tokens: prompt length that the server reported.
        cached_tokens: prefix hit that the server reported.
        instance: servers that served the request.
    """

    send_lag_s: float | None = None
    times_s: Sequence[float] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    instance: str = ""


NOTHING_RECEIVED = ReceivedTokens()


def make_record(
    planned: PlannedRequest,
    rid: str,
    outcome: RequestOutcome,
    reason: str = "",
    received: ReceivedTokens = NOTHING_RECEIVED,
) -> RequestRecord:
    """Return the record of one request."""
    times = received.times_s
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(times)]
    lag_s = received.send_lag_s
    return RequestRecord(
        rid=rid,
        arrival_s=planned.request.arrival_s,
        send_lag_ms=None if lag_s is None else round(1e3 * lag_s, 3),
        input_tokens=planned.request.input_tokens,
        output_tokens=planned.request.output_tokens,
        got_tokens=len(times),
        prompt_tokens=received.prompt_tokens,
        cached_tokens=received.cached_tokens,
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
        instance=received.instance,
    )
