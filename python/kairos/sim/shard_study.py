"""Two comparisons of router shards: by their size, and by the rule of binding."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from kairos.latency import load_profile
from kairos.router.queue.params import Binding, DispatchParams
from kairos.sim.router_shards import ShardedSimulation
from kairos.sim.shard_layout import BALANCERS, ENGINES, ShardLayout
from kairos.workload.load import scale_to_load
from kairos.workload.readers import read_trace
from kairos.workload.resampling import PoissonLoad, resample
from kairos.workload.slo_sets import assign_slos
from kairos.workload.trace import Trace

SEEDS = 2
MIN_REQUESTS = 3_000
COMPARED_LOADS = (0.7, 0.9, 1.1)
UNBOUNDED = DispatchParams(
    max_requests=1_000_000, max_sequences=1_000_000, tenant_room=float("inf")
)


@dataclass(frozen=True, slots=True)
class ShardStudy:
    """The trace and the servers of both comparisons.

    Attributes:
        trace: trace file.
        profile: latency profile, shipped name or path.
        slo: SLO set.
        load: prefill load; `compare_bindings` has its own.
        engine: order inside prefill instances, one of ENGINES.
    """

    trace: str
    profile: str
    slo: str
    load: float = 0.9
    engine: str = "urgency"


def layouts(pairs: int, sizes: list[int] | None, engine: str) -> Iterator[ShardLayout]:
    """Every cut of `pairs` pairs into equal shards of a power of two.

    Args:
        pairs: prefill and decode instances in all, as many of each.
        sizes: the only pairs per shard to return; None returns all.
        engine: order inside prefill instances.
    """
    size = 1
    while size <= pairs:
        if pairs % size == 0 and (sizes is None or size in sizes):
            for balancer in BALANCERS if size < pairs else BALANCERS[:1]:
                yield ShardLayout(pairs // size, size, size, balancer, engine, UNBOUNDED)
        size *= 2


def measure(study: ShardStudy, layout: ShardLayout, requests_per_pair: int) -> dict[str, Any]:
    """Simulate a layout under Poisson arrivals of requests drawn from the trace.

    Returns:
        Means over SEEDS seeds, and the spread of TTFT attainment between them.
    """
    profile = load_profile(study.profile)
    trace = read_trace(study.trace)
    pairs = layout.shards * layout.prefill
    count = max(MIN_REQUESTS, requests_per_pair * pairs)
    runs = []
    for seed in range(SEEDS):
        load = PoissonLoad(count, study.load, pairs, seed)
        requests = resample(trace.requests, load, profile)
        slos = assign_slos(requests, [0] * count, profile, study.slo)
        served = ShardedSimulation(requests, slos, replace(layout, seed=seed), profile).run()
        rate_per_s = count / requests[-1].arrival_s
        runs.append({**asdict(served), "router_cores": served.router_us * 1e-6 * rate_per_s})
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    attained = [run["ttft_attainment"] for run in runs]
    return {
        "simulated": True,
        "pairs": pairs,
        "shards": layout.shards,
        "pairs_per_shard": layout.prefill,
        "balancer": layout.balancer,
        "load": study.load,
        "engine": layout.engine,
        "requests": count,
        "seeds": SEEDS,
        "spread": max(attained) - min(attained),
        **means,
    }


def compare_bindings(study: ShardStudy, first: int) -> Iterator[dict[str, Any]]:
    """Simulate every rule of binding in one shard, for engines of both orders.

    Arrivals and shared prefixes are those of the trace.

    Args:
        study: trace, profile and SLOs.
        first: number of requests taken from the trace.
    """
    profile = load_profile(study.profile)
    whole = read_trace(study.trace)
    trace = Trace(whole.name, whole.sha256, whole.requests[:first])
    for load, engine, decode in product(COMPARED_LOADS, ENGINES, (1, 2)):
        requests = scale_to_load(trace, load, profile, instances=2).trace.requests
        slos = assign_slos(requests, [0] * len(requests), profile, study.slo)
        for binding in Binding:
            params = replace(UNBOUNDED, binding=binding)
            layout = ShardLayout(1, 2, decode, engine=engine, params=params)
            served = ShardedSimulation(requests, slos, layout, profile).run()
            row = {"simulated": True, "load": load, "engine": engine, "decode": decode}
            yield {**row, "binding": binding.value, **asdict(served)}
