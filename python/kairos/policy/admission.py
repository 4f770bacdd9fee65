"""Admission: the forecast for a new request, and the decision on it.

The router and the simulator take the decision with `decide`. They predict the time to first token
on their own: the router from its view of several servers, the simulator with `forecast` from the
queue of one. docs/explanation/admission.md has the method.
"""

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from kairos.errors import InputError
from kairos.latency.profile import Profile
from kairos.policy.jobs import PrefillJob
from kairos.validation import Range, check_range


class AdmissionDecision(Enum):
    """The decision on a new request.

    ADMIT: it is served as asked. DEGRADE: it is served with a weaker TTFT objective. BEST_EFFORT:
    it is served after all others. REJECT: it is not served; the client may try again later.
    """

    ADMIT = "admit"
    DEGRADE = "degrade"
    BEST_EFFORT = "best_effort"
    REJECT = "reject"


class AdmissionParams(NamedTuple):
    """Parameters of admission.

    Attributes:
        infeasible_after: a TTFT objective is infeasible when the predicted TTFT exceeds the time
            left this many times.
        on_infeasible: the decision on a request with one infeasible objective.
        reject_after: a request is rejected when its predicted TTFT exceeds its objective this many
            times; infinite: never for that reason.
        spread: relative standard deviation of predictions, from `Calibration.spread`.
    """

    infeasible_after: float = 1.0
    on_infeasible: AdmissionDecision = AdmissionDecision.DEGRADE
    reject_after: float = 5.0
    spread: float = 0.1

    def check(self) -> None:
        """Raise `InputError` for a value out of range."""
        check_range("admission: infeasible_after", self.infeasible_after, Range(1.0, 1e6))
        check_range("admission: reject_after", self.reject_after, Range(1.0, math.inf))
        check_range("admission: spread", self.spread, Range(0.0, 10.0))


class InstanceLoad(NamedTuple):
    """Work of the instances that would serve a new request.

    Attributes:
        queue: jobs of the prefill instance, without the new one.
        decode_requests: requests that the decode instance holds.
        context_tokens: sum of their contexts, tokens.
        kv_capacity_tokens: KV of the decode instance, tokens.
    """

    queue: Sequence[PrefillJob]
    decode_requests: int
    context_tokens: int
    kv_capacity_tokens: int


class AdmissionForecast(NamedTuple):
    """The forecast for a new request.

    Attributes:
        decision: the decision on it.
        ttft_s: predicted time to first token from now, seconds.
        tpot_s: predicted step time with the request in the batch, seconds.
        ttft_attainment: predicted probability of meeting the TTFT objective, 0 to 1.
        retry_after_s: when the objective could be met, seconds; 0 unless rejected.
    """

    decision: AdmissionDecision
    ttft_s: float
    tpot_s: float
    ttft_attainment: float
    retry_after_s: float


def decide(
    ttft_s: float,
    left_s: float,
    params: AdmissionParams,
    ttft_slo_s: float = math.inf,
    tpot_feasible: bool = True,
) -> AdmissionDecision:
    """Decide on a new request.

    Args:
        ttft_s: predicted time to first token from now, seconds; NaN where nothing is known.
        left_s: time left until the first token is due, seconds.
        params: see `AdmissionParams`.
        ttft_slo_s: TTFT objective, seconds.
        tpot_feasible: whether the TPOT objective can be met.
    """
    # A NaN compares false: without a prediction the TTFT objective counts as feasible.
    ttft_infeasible = ttft_s > params.infeasible_after * left_s
    if ttft_s > params.reject_after * ttft_slo_s or (ttft_infeasible and not tpot_feasible):
        return AdmissionDecision.REJECT
    if ttft_infeasible or not tpot_feasible:
        return params.on_infeasible
    return AdmissionDecision.ADMIT


def forecast(
    job: PrefillJob,
    tpot_slo_s: float,
    load: InstanceLoad,
    now_s: float,
    profile: Profile,
    params: AdmissionParams,
) -> AdmissionForecast:
    """Predict the times of one new request, and decide on it.

    O(n log n) in the queue.

    Args:
        job: the new request.
        tpot_slo_s: its TPOT objective, seconds.
        load: of the instances that would serve it.
        now_s: time on the policy's clock, or when the prefill instance is free.
        profile: predicts prefill and decode times.
        params: see `AdmissionParams`.

    Raises:
        InputError: impossible values of the request.
    """
    job.check()
    if not tpot_slo_s > 0.0:  # so that a NaN is refused, too
        raise InputError(f"job {job.id}: TPOT objective {tpot_slo_s!r} must be positive")
    ttft_s = _ttft_s(job, load.queue, now_s, profile)
    left_s = job.deadline_s - now_s
    context = load.context_tokens + job.total_tokens
    step_s = profile.decode.step_s(load.decode_requests + 1, context, job.total_tokens)
    tpot_feasible = step_s <= tpot_slo_s and context <= load.kv_capacity_tokens
    decision = decide(ttft_s, left_s, params, job.deadline_s - job.arrival_s, tpot_feasible)
    attainment = _normal_cdf((left_s - ttft_s) / max(params.spread * ttft_s, 1e-9))
    rejected = decision is AdmissionDecision.REJECT
    retry_s = max(ttft_s - left_s, 0.0) if rejected else 0.0
    return AdmissionForecast(decision, ttft_s, step_s, attainment, retry_s)


def _ttft_s(job: PrefillJob, queue: Sequence[PrefillJob], now_s: float, profile: Profile) -> float:
    """Return the predicted time to first token of `job`, behind the work that urgency serves first.

    A feasible job follows the feasible jobs that are due earlier. Any other job follows all
    feasible jobs, and the deferred ones that are smaller.
    """
    from kairos.policy.moore_hodgson import DEFERRED, FEASIBLE, INFEASIBLE, defer_overload

    model, chunk_tokens = profile.prefill, profile.limits.chunk_tokens
    jobs = sorted([*queue, job], key=lambda each: (each.deadline_s, each.id))
    own = next(i for i, each in enumerate(jobs) if each is job)
    works = [model.remaining_s(one.done_tokens, one.total_tokens, chunk_tokens) for one in jobs]
    # Alone in its batches, the new job pays what the others share.
    works[own] += model.fixed_s + model.weight_floor_s
    work_s, due_s = np.array(works), np.array([one.deadline_s for one in jobs])
    state = np.where(now_s + work_s > due_s, INFEASIBLE, FEASIBLE).astype(np.int8)
    defer_overload(work_s, work_s, due_s, now_s, state)
    feasible = work_s[state == FEASIBLE]
    if state[own] == FEASIBLE:
        feasible = work_s[:own][state[:own] == FEASIBLE]
        return float(feasible.sum()) + works[own]
    deferred = work_s[state == DEFERRED]
    if state[own] == DEFERRED:
        deferred = deferred[deferred < works[own]]
    return float(feasible.sum()) + float(deferred.sum()) + works[own]


def _normal_cdf(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))
