"""What is known of a request when it has ended: the source of its log line and its metrics."""

import math

import msgspec

from kairos.router.request.outcome import Outcome
from kairos.slo import Slo


class AccessRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, after its end. Durations in seconds, on the router's monotonic clock.

    Attributes:
        status: HTTP status the client got; 499 where it was gone, 0 where nothing was sent.
        reason: one word or few, for example "queue_full"; never a prompt or a key.
        path: of the URL, one of the router's own or as sent.
        request_id: the router's own number for it, which is the rid of its last attempt.
        client_request_id: the client's own name for it (X-Request-Id).
        tenant: its name; None before it was known.
        slo: what applied; None where it did not get that far.
        queue_s: from receipt to its last dispatch (or to its end, if there was none).
        predicted_ttft_s: as predicted on admission, from receipt; None or NaN where nothing was.
        ttft_s: from its arrival (`elapsed_ms` counted) to the first byte of its answer's content.
        tpot_s: (last token - first token)/(n-1); None with fewer than two tokens, or unknown n.
        duration_s: from receipt to its end.
        attempts: dispatches.
    """

    outcome: Outcome
    status: int
    path: str
    request_id: str
    duration_s: float
    client_request_id: str | None = None
    reason: str = ""
    method: str = "POST"
    tenant: str | None = None
    slo: Slo | None = None
    model: str | None = None
    stream: bool = False
    best_effort: bool = False
    sequences: int = 1
    input_tokens: int | None = None
    output_tokens: int | None = None
    body_bytes: int = 0
    queue_s: float | None = None
    predicted_ttft_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    attempts: int = 0
    prefill: str | None = None
    decode: str | None = None
    trace_id: str | None = None
    peer: str | None = None

    @property
    def ttft_met(self) -> bool | None:
        """Whether the first token came in time; None where no TTFT objective applied.

        A request that was not answered missed it, but for one that its client gave up or got
        wrong.
        """
        if self.slo is None or math.isinf(self.slo.ttft_ms) or not self._scored:
            return None
        return self.ttft_s is not None and self.ttft_s <= self.slo.ttft_s

    @property
    def tpot_met(self) -> bool | None:
        """The same for the time per output token; an answer of one token meets it."""
        if self.slo is None or math.isinf(self.slo.tpot_ms) or not self._scored:
            return None
        if self.outcome is not Outcome.COMPLETED:
            return False
        return self.tpot_s is None or self.tpot_s <= self.slo.tpot_s

    @property
    def _scored(self) -> bool:
        """Of a whole answer the client sees no first token, so there is nothing to score."""
        return self.stream and self.outcome not in _UNSCORED


_UNSCORED = (
    Outcome.INVALID,
    Outcome.UNAUTHORIZED,
    Outcome.REJECTED_TENANT,
    Outcome.ENGINE_REFUSED,
    Outcome.CLIENT_GONE,
)
