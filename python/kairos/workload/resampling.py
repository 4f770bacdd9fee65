"""Requests drawn at random from a trace, at a load."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kairos.latency import Profile
from kairos.workload.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class PoissonLoad:
    """Poisson arrivals at a prefill load.

    Attributes:
        requests: number of requests to draw.
        load: prefill load per instance.
        instances: prefill instances.
        seed: draws requests and gaps.
    """

    requests: int
    load: float
    instances: int
    seed: int


def resample(
    requests: Sequence[TraceRequest], wanted: PoissonLoad, profile: Profile
) -> list[TraceRequest]:
    """Draw requests with replacement; their prefixes are not shared.

    Args:
        requests: the requests to draw from.
        wanted: number and load.
        profile: prefill latency of the instances.
    """
    draw = random.Random(wanted.seed)
    drawn = draw.choices(requests, k=wanted.requests)
    chunk_tokens = profile.limits.chunk_tokens
    work_s = [profile.prefill.remaining_s(0, r.input_tokens, chunk_tokens) for r in drawn]
    rate_per_s = wanted.load * wanted.instances * wanted.requests / sum(work_s)
    arrival_s, made = 0.0, []
    for request in drawn:
        arrival_s += draw.expovariate(rate_per_s)
        made.append(TraceRequest(arrival_s, request.input_tokens, request.output_tokens))
    return made
