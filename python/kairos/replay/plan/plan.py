"""What a replay will send: every request with its time, lengths and SLO, fixed beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.replay.plan.dilation import check_factor
from kairos.slo import Slo
from kairos.workload.load import Workload, scale_to_load
from kairos.workload.prefix import CACHE_TOKENS
from kairos.workload.slo_sets import DEFAULT_TPOT_MS, assign_slos
from kairos.workload.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """Attributes:
    index: position in order of arrival.
    request: arrival from the start of the replay, and lengths.
    cached_tokens: prefix hit the load calculation expects.
    slo: what it has to meet.
    """

    index: int
    request: TraceRequest
    cached_tokens: int
    slo: Slo


@dataclass(frozen=True, slots=True)
class Plan:
    """A workload with SLOs. Equal arguments give equal plans, so every arm gets the same one.

    Attributes:
        tpot_ms: before dilation, as asked for.
        dilate: factor by which arrivals and SLOs are slowed down; servers need a profile that is,
            too.
    """

    workload: Workload
    slo_set: str
    tpot_ms: float
    seed: int
    requests: Sequence[PlannedRequest]
    dilate: float = 1.0


def make_plan(
    trace: Trace,
    profile: Profile,
    *,
    load: float,
    duration_s: float | None = None,
    start_s: float = 0.0,
    instances: int = 1,
    slo_set: str = "L3",
    tpot_ms: float = DEFAULT_TPOT_MS,
    seed: int = 0,
    cache_tokens: int = CACHE_TOKENS,
    dilate: float = 1.0,
) -> Plan:
    """Scale a trace to a load and give each request its SLO; see `load` and `slo_sets`.

    Args:
        profile: not dilated.
        duration_s: of arrivals, before dilation.

    Raises:
        InputError: an argument is out of range, or the trace has too little at that place.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"seed: {seed} is out of range, allowed are 0 to 2^63 - 1")
    check_factor(dilate)
    workload = scale_to_load(
        trace,
        load,
        profile,
        instances=instances,
        start_s=start_s,
        duration_s=duration_s,
        cache_tokens=cache_tokens,
    )
    requests = workload.trace.requests
    slos = assign_slos(requests, workload.cached_tokens, profile, slo_set, tpot=tpot_ms, seed=seed)
    if dilate != 1.0:
        requests = [msgspec.structs.replace(r, arrival_s=r.arrival_s * dilate) for r in requests]
        slos = [
            replace(slo, ttft_ms=slo.ttft_ms * dilate, tpot_ms=slo.tpot_ms * dilate) for slo in slos
        ]
        slowed = Trace(workload.trace.name, workload.trace.sha256, requests)
        workload = replace(workload, trace=slowed, time_scale=workload.time_scale * dilate)
    planned = [
        PlannedRequest(i, request, hit, slo)
        for i, (request, hit, slo) in enumerate(
            zip(requests, workload.cached_tokens, slos, strict=True)
        )
    ]
    return Plan(workload, slo_set, tpot_ms, seed, planned, dilate)
