"""Offered load of a trace and its scaling.

Load rho is the marginal prefill work of all requests over (span x prefill instances): at rho = 1,
prompts bring exactly the work that the prefill instances can do. Tokens that an LRU prefix cache
would hold are no work; the cache has 4 M tokens by default. The fixed cost of a batch is spread
over full chunks. Scaling changes arrival times; lengths and order stay.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.validation import Range, check_range
from kairos.workload.prefix import CACHE_TOKENS, expected_cached_tokens
from kairos.workload.trace import Trace, TraceRequest

LOADS = Range(1e-3, 1e3)
_INSTANCES = Range(1, 1e4)
_STARTS_S = Range(0.0, 1e10)
_DURATIONS_S = Range(0.1, 1e7)
_CACHE_TOKENS = Range(0, 1e9)


class TraceSection(NamedTuple):
    """The part of a trace that is scaled.

    Attributes:
        start_s: time in the trace from which requests are taken, seconds.
        duration_s: span of the scaled arrivals, seconds; None takes all requests.
    """

    start_s: float = 0.0
    duration_s: float | None = None


WHOLE_TRACE = TraceSection()


@dataclass(frozen=True, slots=True)
class Workload:
    """A piece of a trace, scaled to a load.

    Attributes:
        trace: the requests, arrivals from 0.
        cached_tokens: expected prefix hit of each request, tokens.
        load: offered prefill load.
        time_scale: factor by which the arrival times of the trace were multiplied.
        instances: prefill instances that the load refers to.
        cache_tokens: capacity of the prefix cache that the load assumes.
    """

    trace: Trace
    cached_tokens: list[int]
    load: float
    time_scale: float
    instances: int
    cache_tokens: int = CACHE_TOKENS


def prefill_work_s(request: TraceRequest, cached_tokens: int, profile: Profile) -> float:
    """Marginal prefill work of one request, seconds."""
    return profile.prefill.remaining_s(
        cached_tokens, request.input_tokens, profile.limits.chunk_tokens
    )


def scale_to_load(
    trace: Trace,
    load: float,
    profile: Profile,
    *,
    instances: int = 1,
    section: TraceSection = WHOLE_TRACE,
    cache_tokens: int = CACHE_TOKENS,
) -> Workload:
    """Take a section of a trace and rescale its arrivals to offer a load.

    With a duration, the number of requests is the one that comes nearest to offering the load over
    that time; it is smaller when the trace ends first. The load is exact for the taken requests.
    The duration is met to half a request's work.

    Args:
        trace: the requests.
        load: prefill load per instance.
        profile: prefill latency of an instance.
        instances: prefill instances.
        section: where to begin, and how long the arrivals last.
        cache_tokens: capacity of the prefix cache that the load assumes.

    Raises:
        InputError: an argument is out of range, or the section has no span to scale.
    """
    check_range("load", load, LOADS)
    check_range("instances", instances, _INSTANCES)
    check_range("start-s", section.start_s, _STARTS_S)
    check_range("prefix-cache-tokens", cache_tokens, _CACHE_TOKENS)
    if section.duration_s is not None:
        check_range("duration-s", section.duration_s, _DURATIONS_S)
    requests = _from(trace, section.start_s)
    cached = expected_cached_tokens(requests, cache_tokens)
    works = [prefill_work_s(r, hit, profile) for r, hit in zip(requests, cached, strict=True)]
    taken = len(requests)
    if section.duration_s is not None:
        wanted = load * instances * section.duration_s
        offered = [0.0, *itertools.accumulate(works)]
        taken = max(2, min(range(len(offered)), key=lambda n: abs(offered[n] - wanted)))
    work = sum(works[:taken])
    requests, cached = requests[:taken], cached[:taken]
    first = requests[0].arrival_s
    span = requests[-1].arrival_s - first
    if span <= 0.0:
        raise InputError(
            f"{trace.name}: {taken} requests from {section.start_s:g} s on arrive at the same "
            "instant; their load cannot be scaled, take a longer duration"
        )
    scale = work / (load * instances) / span
    scaled = [msgspec.structs.replace(r, arrival_s=(r.arrival_s - first) * scale) for r in requests]
    scaled_trace = Trace(trace.name, trace.sha256, scaled)
    return Workload(scaled_trace, cached, load, scale, instances, cache_tokens)


def _from(trace: Trace, start_s: float) -> list[TraceRequest]:
    """Requests that arrive from `start_s` on, at least two."""
    requests = [r for r in trace.requests if r.arrival_s >= start_s]
    if len(requests) < 2:
        last = ""
        if trace.requests:
            last = f" (the last one arrives at {trace.requests[-1].arrival_s:g} s)"
        raise InputError(
            f"{trace.name}: {len(requests)} requests arrive from {start_s:g} s on; scaling to a "
            f"load needs 2{last}"
        )
    return requests
