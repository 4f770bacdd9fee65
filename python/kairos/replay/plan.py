"""What a replay will send: every request with its time, lengths and SLO, fixed beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.slo import Slo
from kairos.workload.load import Workload, scale_to_load
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
    """A workload with SLOs. Equal arguments give equal plans, so every arm gets the same one."""

    workload: Workload
    slo_set: str
    tpot_ms: float
    seed: int
    requests: Sequence[PlannedRequest]


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
) -> Plan:
    """Scale a trace to a load and give each request its SLO; see `load` and `slo_sets`.

    Raises:
        InputError: an argument is out of range, or the trace has too little at that place.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"seed: {seed} is out of range, allowed are 0 to 2^63 - 1")
    workload = scale_to_load(
        trace, load, profile, instances=instances, start_s=start_s, duration_s=duration_s
    )
    requests = workload.trace.requests
    slos = assign_slos(requests, workload.cached_tokens, profile, slo_set, tpot=tpot_ms, seed=seed)
    planned = [
        PlannedRequest(i, request, hit, slo)
        for i, (request, hit, slo) in enumerate(
            zip(requests, workload.cached_tokens, slos, strict=True)
        )
    ]
    return Plan(workload, slo_set, tpot_ms, seed, planned)
