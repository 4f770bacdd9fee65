"""Offered load of a trace and its scaling.

Load rho is the sum of marginal prefill work over (span x prefill instances): at rho = 1 prompts
bring exactly the work that the prefill instances can do. Work counts what an LRU prefix cache,
of 4 M tokens unless said otherwise, would not hold, with a batch's fixed cost spread over full
chunks. Arrivals are scaled in time; lengths and order stay.
"""

import itertools
from dataclasses import dataclass

import msgspec

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.workload.prefix import CACHE_TOKENS, expected_cached_tokens
from kairos.workload.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True)
class Workload:
    """A piece of a trace, scaled to a load.

    Attributes:
        trace: the requests, arrivals from 0.
        cached_tokens: expected prefix hit of each request, tokens.
        load: offered prefill load.
        time_scale: factor by which the arrival times of the trace were multiplied.
        instances: prefill instances the load refers to.
        cache_tokens: capacity of the prefix cache that the load assumes.
    """

    trace: Trace
    cached_tokens: list[int]
    load: float
    time_scale: float
    instances: int
    cache_tokens: int = CACHE_TOKENS


def prefill_work_s(request: TraceRequest, cached_tokens: int, profile: Profile) -> float:
    """Marginal prefill work of one request in seconds."""
    return profile.prefill.remaining_s(
        cached_tokens, request.input_tokens, profile.limits.chunk_tokens
    )


def scale_to_load(
    trace: Trace,
    load: float,
    profile: Profile,
    *,
    instances: int = 1,
    start_s: float = 0.0,
    duration_s: float | None = None,
    cache_tokens: int = CACHE_TOKENS,
) -> Workload:
    """Take requests from `start_s` of the trace on and rescale their arrivals to offer `load`.

    With `duration_s`, as many requests are taken as come nearest to offering that load over that
    time, fewer when the trace ends first. The load is exact for what is taken, whatever its mix
    of lengths; the duration is met to half a request's work.

    Raises:
        InputError: the arguments are out of range, or what is left has no span to scale.
    """
    _check("load", load, 1e-3, 1e3)
    _check("instances", instances, 1, 1e4)
    _check("start-s", start_s, 0.0, 1e10)
    _check("prefix-cache-tokens", cache_tokens, 0, 1e9)
    if duration_s is not None:
        _check("duration-s", duration_s, 0.1, 1e7)
    requests = [r for r in trace.requests if r.arrival_s >= start_s]
    if len(requests) < 2:
        last = ""
        if trace.requests:
            last = f" (the last one arrives at {trace.requests[-1].arrival_s:g} s)"
        raise InputError(
            f"{trace.name}: {len(requests)} requests arrive from {start_s:g} s on; scaling to a "
            f"load needs 2{last}"
        )
    cached = expected_cached_tokens(requests, cache_tokens)
    works = [prefill_work_s(r, hit, profile) for r, hit in zip(requests, cached, strict=True)]
    taken = len(requests)
    if duration_s is not None:
        wanted = load * instances * duration_s
        offered = [0.0, *itertools.accumulate(works)]
        taken = max(2, min(range(len(offered)), key=lambda n: abs(offered[n] - wanted)))
    work = sum(works[:taken])
    requests, cached = requests[:taken], cached[:taken]
    first = requests[0].arrival_s
    span = requests[-1].arrival_s - first
    if span <= 0.0:
        raise InputError(
            f"{trace.name}: {taken} requests from {start_s:g} s on arrive at the same instant; "
            "their load cannot be scaled, take a longer duration"
        )
    scale = work / (load * instances) / span
    scaled = [msgspec.structs.replace(r, arrival_s=(r.arrival_s - first) * scale) for r in requests]
    scaled_trace = Trace(trace.name, trace.sha256, scaled)
    return Workload(scaled_trace, cached, load, scale, instances, cache_tokens)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name}: {value!r} is out of range, allowed are {low:g} to {high:g}")
