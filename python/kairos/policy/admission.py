"""Admission: what a new request can expect, given what waits already, and what to do about it."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from kairos.errors import InputError
from kairos.latency.decode import DecodeModel
from kairos.latency.prefill import PrefillModel
from kairos.policy.jobs import PrefillJob
from kairos.validation import Range, check_range


class AdmissionDecision(Enum):
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
        check_range("admission: reject_after", self.reject_after, Range(1.0, 1e6))
        check_range("admission: spread", self.spread, Range(0.0, 10.0))


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """What a decode instance holds: requests, and the sum of their contexts in tokens."""

    requests: int
    context_tokens: int
    kv_capacity: int


@dataclass(frozen=True, slots=True)
class AdmissionForecast:
    """Attributes:
    decision: what to do.
    ttft_s: predicted time to first token from now, seconds.
    tpot_s: predicted step time with the request in the batch, seconds.
    ttft_attainment: predicted probability of meeting the TTFT objective, 0..1.
    retry_after_s: when the objective could be met, seconds; 0 unless rejected.
    """

    decision: AdmissionDecision
    ttft_s: float
    tpot_s: float
    ttft_attainment: float
    retry_after_s: float


def forecast(
    job: PrefillJob,
    tpot_slo_s: float,
    queue: Sequence[PrefillJob],
    decode: DecodeLoad,
    now_s: float,
    prefill: PrefillModel,
    decode_model: DecodeModel,
    chunk_tokens: int,
    params: AdmissionParams,
) -> AdmissionForecast:
    """Predict one request, given the work that urgency serves before it. O(n log n) in the queue.

    Args:
        queue: jobs of the instance that would serve it, without `job`.
        now_s: time on the policy's clock.
    """
    job.check()
    if not 0.0 < tpot_slo_s < math.inf:
        raise InputError(f"job {job.id}: TPOT objective {tpot_slo_s!r} must be finite and positive")
    own = prefill.fixed_s + prefill.weight_floor_s
    own += prefill.remaining_s(job.done_tokens, job.total_tokens, chunk_tokens)
    ttft = _work_ahead_s(job, own, queue, now_s, prefill, chunk_tokens) + own
    budget = job.deadline_s - now_s
    attainment = _normal_cdf((budget - ttft) / max(params.spread * ttft, 1e-9))
    step = decode_model.step_s(
        decode.requests + 1, decode.context_tokens + job.total_tokens, job.total_tokens
    )
    late = ttft > budget
    slow = step > tpot_slo_s or decode.context_tokens + job.total_tokens > decode.kv_capacity
    swamped = ttft > params.reject_after * (job.deadline_s - job.arrival_s)
    if swamped or (late and slow):
        return AdmissionForecast(
            AdmissionDecision.REJECT, ttft, step, attainment, max(ttft - budget, 0.0)
        )
    decision = AdmissionDecision.DEGRADE if late or slow else AdmissionDecision.ADMIT
    return AdmissionForecast(decision, ttft, step, attainment, 0.0)


def _work_ahead_s(
    job: PrefillJob,
    own_s: float,
    queue: Sequence[PrefillJob],
    now_s: float,
    prefill: PrefillModel,
    chunk_tokens: int,
) -> float:
    """Seconds of work that urgency serves before `job`, which takes `own_s`: Moore-Hodgson over all
    that can still make it. A job that is given up follows those kept and smaller ones given up."""
    kept: list[tuple[float, int, tuple[float, int]]] = []  # a heap, the largest on top
    end_s = now_s
    given_up_s: list[float] = []
    for each in sorted([*queue, job], key=_due):
        work = own_s
        if each is not job:
            work = prefill.remaining_s(each.done_tokens, each.total_tokens, chunk_tokens)
        if now_s + work > each.deadline_s:
            continue
        heapq.heappush(kept, (-work, each.id, _due(each)))
        end_s += work
        if end_s > each.deadline_s:
            largest, _, _ = heapq.heappop(kept)
            end_s += largest
            given_up_s.append(-largest)
    on_time = any(number == job.id for _, number, _ in kept)
    if on_time:
        return sum(-work for work, _, due in kept if due < _due(job))
    late = now_s + own_s > job.deadline_s
    smaller = sum(work for work in given_up_s if late or work < own_s)
    return sum(-work for work, _, _ in kept) + smaller


def _due(job: PrefillJob) -> tuple[float, int]:
    return job.deadline_s, job.id


def _normal_cdf(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))
