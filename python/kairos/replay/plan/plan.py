"""The plan of a replay: every request with its time, lengths and SLO, fixed in advance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.replay.plan.dilation import check_factor
from kairos.slo import Slo
from kairos.workload.load import TraceSection, Workload, scale_to_load
from kairos.workload.prefix import CACHE_TOKENS
from kairos.workload.slo_sets import DEFAULT_TPOT_MS, assign_slos
from kairos.workload.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a plan.

    Attributes:
        index: position in order of arrival.
        request: lengths, and arrival from the start of the replay.
        cached_tokens: prefix hit that the load calculation expects.
        slo: objectives of the request.
    """

    index: int
    request: TraceRequest
    cached_tokens: int
    slo: Slo


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """How a plan is made from a trace and a profile. Times are those before dilation.

    Attributes:
        load: prefill load to offer.
        duration_s: seconds of arrivals; None takes the whole trace.
        start_s: where in the trace the plan begins, seconds.
        instances: number of prefill servers, or of their ranks, that share the load.
        slo_set: name of the SLO set.
        tpot_ms: TPOT objective; the tiers set has its own.
        seed: seed of prompts, classes and generated traces.
        cache_tokens: prefix cache that the load assumes.
        dilate: factor by which arrivals and SLOs are slowed down. Servers need a profile that is
            slowed down by the same factor.
    """

    load: float
    duration_s: float | None = None
    start_s: float = 0.0
    instances: int = 1
    slo_set: str = "L3"
    tpot_ms: float = DEFAULT_TPOT_MS
    seed: int = 0
    cache_tokens: int = CACHE_TOKENS
    dilate: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A workload with SLOs. Equal arguments give equal plans, so every arm gets the same plan."""

    config: PlanConfig
    workload: Workload
    requests: Sequence[PlannedRequest]


def make_plan(trace: Trace, profile: Profile, config: PlanConfig) -> Plan:
    """Scale a trace to a load and assign an SLO to each request.

    Args:
        trace: source of arrivals and lengths.
        profile: latency profile, not dilated.
        config: load, SLOs and the part of the trace.

    Raises:
        InputError: a value is out of range, or that part of the trace has too few requests.
    """
    if not 0 <= config.seed < 2**63:
        raise InputError(f"seed: {config.seed} is out of range, allowed are 0 to 2^63 - 1")
    check_factor(config.dilate)
    workload = scale_to_load(
        trace,
        config.load,
        profile,
        instances=config.instances,
        section=TraceSection(config.start_s, config.duration_s),
        cache_tokens=config.cache_tokens,
    )
    slos = assign_slos(
        workload.trace.requests,
        workload.cached_tokens,
        profile,
        config.slo_set,
        tpot=config.tpot_ms,
        seed=config.seed,
    )
    if config.dilate != 1.0:
        workload, slos = _slowed_down(workload, slos, config.dilate)
    hits = workload.cached_tokens
    planned = [
        PlannedRequest(i, request, hit, slo)
        for i, (request, hit, slo) in enumerate(
            zip(workload.trace.requests, hits, slos, strict=True)
        )
    ]
    return Plan(config, workload, planned)


def _slowed_down(
    workload: Workload, slos: Sequence[Slo], factor: float
) -> tuple[Workload, list[Slo]]:
    """Stretch arrivals and SLOs by `factor`."""
    trace = workload.trace
    requests = [msgspec.structs.replace(r, arrival_s=r.arrival_s * factor) for r in trace.requests]
    slowed = Trace(trace.name, trace.sha256, requests)
    slos = [
        replace(slo, ttft_ms=slo.ttft_ms * factor, tpot_ms=slo.tpot_ms * factor) for slo in slos
    ]
    return replace(workload, trace=slowed, time_scale=workload.time_scale * factor), slos
