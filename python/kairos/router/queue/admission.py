"""The dispatcher's answer to an offered request, and the bounds of its queue."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum

import msgspec

from kairos.policy.admission import AdmissionDecision
from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.queue.params import DispatchParams
from kairos.router.queue.request import RequestDemand
from kairos.slo import TTFT_RANGE_MS, Slo

DEGRADE_SPARE = 1.25
"""A degraded request gets this multiple of its predicted TTFT as its objective."""


class Reason(Enum):
    """Why a request was not admitted as asked. The value is a metric label."""

    REQUESTS = "queue_requests"  # 429: the queue holds its maximum of requests
    SEQUENCES = "queue_sequences"  # 429: or of sequences
    BYTES = "queue_bytes"  # 429: or of bytes
    TENANT = "tenant"  # 429: the tenant holds its share of the queue
    INFEASIBLE = "infeasible"  # 429: its TTFT objective cannot be met
    TOO_LARGE = "too_large"  # 400: no decode worker could ever hold it
    NO_PAIR = "no_pair"  # 503: no prefill or no decode worker is known


@dataclass(frozen=True, slots=True)
class AdmissionResult:
    """The answer to an offered request.

    Attributes:
        slo: the objectives that apply to it now.
        reason: None when admitted as asked.
        detail: one sentence for the client; empty when admitted.
        retry_after_s: when a rejected request could succeed, seconds; 0 where never or not
            rejected.
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
        """Whether the request waits in the queue now."""
        return self.decision is not AdmissionDecision.REJECT


def weakened(
    work: RequestDemand, decision: AdmissionDecision, ttft_s: float, now_s: float
) -> RequestDemand:
    """Return a demand with a longer objective (DEGRADE), or with none that counts (BEST_EFFORT)."""
    if decision is not AdmissionDecision.DEGRADE:
        return msgspec.structs.replace(work, best_effort=True)
    longer_s = now_s - work.arrival_s + DEGRADE_SPARE * ttft_s
    slo = replace(work.slo, ttft_ms=min(longer_s * 1e3, TTFT_RANGE_MS[1]))
    return msgspec.structs.replace(work, slo=slo)


@dataclass(slots=True)
class QueueShare:
    """The waiting requests of all tenants, or of one."""

    requests: int = 0
    sequences: int = 0
    bytes: int = 0

    def add(self, work: RequestDemand, sign: int = 1) -> None:
        """Count a request in (1) or out (-1)."""
        self.requests += sign
        self.sequences += sign * work.sequences
        self.bytes += sign * work.body_bytes


class QueueLimits:
    """Counts the waiting requests, in all and per tenant.

    A tenant's part is bounded by the free part of the queue (dynamic thresholds). A tenant that
    floods the queue stops itself before the queue is full, and no room is set aside for others.
    """

    def __init__(self) -> None:
        self.total = QueueShare()
        self._tenants: dict[str, QueueShare] = {}

    def add(self, work: RequestDemand) -> None:
        """Count a request in."""
        self.total.add(work)
        self._tenants.setdefault(work.tenant, QueueShare()).add(work)

    def remove(self, work: RequestDemand) -> None:
        """Count a request out."""
        self.total.add(work, -1)
        own = self._tenants[work.tenant]
        own.add(work, -1)
        if not own.requests:
            del self._tenants[work.tenant]

    def refuses(
        self,
        work: RequestDemand,
        prefill_workers: int,
        decode: Collection[DecodeTarget],
        params: DispatchParams,
    ) -> tuple[Reason, str] | None:
        """Return why `work` cannot be queued, and the client's message; None if it can."""
        if not prefill_workers or not decode:
            return Reason.NO_PAIR, "no prefill or no decode server is known"
        tokens = work.mean_prompt_tokens
        if not any(worker.could_hold(tokens) for worker in decode):
            most = max(worker.kv_tokens or 0 for worker in decode)
            return Reason.TOO_LARGE, f"a prompt of {tokens - 1} tokens; servers hold {most}"
        total = self.total
        for reason, held, more, most, unit in (
            (Reason.REQUESTS, total.requests, 1, params.max_requests, "requests"),
            (Reason.SEQUENCES, total.sequences, work.sequences, params.max_sequences, "sequences"),
            (Reason.BYTES, total.bytes, work.body_bytes, params.max_bytes, "bytes"),
        ):
            if held + more > most:
                return reason, f"the queue holds {held} of at most {most} {unit}"
        own = self._tenants.get(work.tenant, QueueShare())
        room = params.tenant_room * params.tenant_weights.get(work.tenant, 1.0)
        for held, more, free, unit in (
            (own.requests, 1, params.max_requests - total.requests, "requests"),
            (own.bytes, work.body_bytes, params.max_bytes - total.bytes, "bytes"),
        ):
            if held + more > max(room * free, more):
                return Reason.TENANT, f"your part of the queue is used up ({held} {unit} wait)"
        return None
