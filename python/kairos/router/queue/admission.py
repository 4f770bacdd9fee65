"""What the dispatcher answers when a request is offered to it."""

from dataclasses import dataclass
from enum import Enum

from kairos.policy.admission import AdmissionDecision
from kairos.slo import Slo


class Reason(Enum):
    """Why a request was not admitted as asked. The value is a metric label."""

    REQUESTS = "queue_requests"  # 429: the queue holds its maximum of requests
    SEQUENCES = "queue_sequences"  # 429: or of sequences
    BYTES = "queue_bytes"  # 429: or of bytes
    TENANT = "tenant"  # 429: the tenant holds its share of the queue
    INFEASIBLE = "infeasible"  # 429: its TTFT objective cannot be met
    TOO_LARGE = "too_large"  # 400: no decode instance could ever hold it
    NO_PAIR = "no_pair"  # 503: no prefill or no decode instance is known


@dataclass(frozen=True, slots=True)
class AdmissionResult:
    """Attributes:
    decision: what became of the request.
    slo: the objectives that apply to it now; echo these.
    reason: None when admitted as asked.
    detail: one sentence for the client; empty when admitted.
    retry_after_s: when a rejected request could succeed, seconds; 0 where never or not rejected.
    predicted_ttft_s: from now, seconds; NaN where nothing is known.
    """

    decision: AdmissionDecision
    slo: Slo
    reason: Reason | None = None
    detail: str = ""
    retry_after_s: float = 0.0
    predicted_ttft_s: float = float("nan")

    @property
    def queued(self) -> bool:
        return self.decision is not AdmissionDecision.REJECT
