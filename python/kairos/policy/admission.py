"""Admission: what a new request can expect, given what waits already, and what to do about it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from kairos.errors import InputError
from kairos.latency.decode import DecodeModel
from kairos.latency.prefill import PrefillModel
from kairos.policy.jobs import PrefillJob


class Verdict(Enum):
    """ADMIT: both objectives can be met. DEGRADE: one cannot; serve it with a weaker one.
    REJECT: neither can, or the first token would come far too late; try again later."""

    ADMIT = "admit"
    DEGRADE = "degrade"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class AdmissionParams:
    """Attributes:
    reject_after: reject when the predicted TTFT exceeds this many times the objective.
    spread: relative standard deviation of predictions, from `Calibration.spread`.
    """

    reject_after: float = 5.0
    spread: float = 0.1

    def __post_init__(self) -> None:
        if not (1.0 <= self.reject_after <= 1e6 and 0.0 <= self.spread <= 10.0):
            raise InputError(
                f"admission: reject_after {self.reject_after!r} and spread {self.spread!r}; "
                "allowed are 1 to 1e6 and 0 to 10"
            )


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """What a decode instance holds: requests, and the sum of their contexts in tokens."""

    requests: int
    context_tokens: int
    kv_capacity: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """Attributes:
    verdict: what to do.
    ttft_s: predicted time to first token from now, seconds.
    tpot_s: predicted step time with the request in the batch, seconds.
    ttft_attainment: predicted probability of meeting the TTFT objective, 0..1.
    retry_after_s: when the objective could be met, seconds; 0 unless rejected.
    """

    verdict: Verdict
    ttft_s: float
    tpot_s: float
    ttft_attainment: float
    retry_after_s: float


def outlook(
    job: PrefillJob,
    tpot_slo_s: float,
    queue: Sequence[PrefillJob],
    decode: DecodeLoad,
    now_s: float,
    prefill: PrefillModel,
    decode_model: DecodeModel,
    chunk_tokens: int,
    params: AdmissionParams,
) -> Outlook:
    """Predict one request. Work ahead of it: the queued jobs that are due earlier and can still
    make it, as urgency serves them. O(len(queue)).

    Args:
        queue: jobs of the instance that would serve it, without `job`.
        now_s: time on the policy's clock.
    """
    job.check()
    if not 0.0 < tpot_slo_s < math.inf:
        raise InputError(f"job {job.id}: TPOT objective {tpot_slo_s!r} must be finite and positive")
    ahead = 0.0
    for other in queue:
        work = prefill.remaining_s(other.done_tokens, other.total_tokens, chunk_tokens)
        in_time = now_s + work <= other.deadline_s
        if in_time and (other.deadline_s, other.id) < (job.deadline_s, job.id):
            ahead += work
    own = prefill.fixed_s + prefill.weight_floor_s
    own += prefill.remaining_s(job.done_tokens, job.total_tokens, chunk_tokens)
    ttft = ahead + own
    budget = job.deadline_s - now_s
    attainment = _normal_cdf((budget - ttft) / max(params.spread * ttft, 1e-9))
    step = decode_model.step_s(
        decode.requests + 1, decode.context_tokens + job.total_tokens, job.total_tokens
    )
    late = ttft > budget
    slow = step > tpot_slo_s or decode.context_tokens + job.total_tokens > decode.kv_capacity
    swamped = ttft > params.reject_after * (job.deadline_s - job.arrival_s)
    if swamped or (late and slow):
        return Outlook(Verdict.REJECT, ttft, step, attainment, max(ttft - budget, 0.0))
    verdict = Verdict.DEGRADE if late or slow else Verdict.ADMIT
    return Outlook(verdict, ttft, step, attainment, 0.0)


def _normal_cdf(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))
