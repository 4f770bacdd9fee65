"""One simulation of a sweep, described so that it can be repeated."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.sim.bounds import clairvoyant_ttft, drop_reference_tpot, lp_bound_ttft
from kairos.sim.config import SimConfig
from kairos.sim.scenario import Scenario
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise
from kairos.workload.load import scale_to_load
from kairos.workload.readers import read_trace
from kairos.workload.slo_sets import assign_slos
from kairos.workload.trace import Trace


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One run of a sweep.

    Attributes:
        trace: trace file.
        part: (k, n): the k-th of n equal parts of the trace.
        first: number of requests taken from the part; 0: all.
        profile: shipped name or path.
        load: prefill load; load of the decode stage where only that is simulated.
        slo: SLO set.
        tpot_ms: TPOT objective, milliseconds; tiers have their own.
        seed: of the tiers.
        bound: whether the upper bound and the clairvoyant references are added.
        config: policies, instances and model errors.
        busier: whether `load` is that of the busier stage, with one instance of each.
    """

    trace: str
    part: tuple[int, int]
    first: int
    profile: str
    load: float
    slo: str
    tpot_ms: float
    seed: int
    bound: bool
    config: SimConfig
    busier: bool = False


@lru_cache(maxsize=4)
def _trace(path: str, part: tuple[int, int], first: int) -> Trace:
    trace = read_trace(path)
    which, parts = part
    n = len(trace.requests)
    if n < parts:
        raise InputError(f"{path}: {n} requests cannot be cut into {parts} parts; take fewer")
    kept = trace.requests[n * (which - 1) // parts : n * which // parts]
    return Trace(trace.name, trace.sha256, kept[: first or None])


def scenario_of(point: SweepPoint) -> Scenario:
    """The requests of a point: its trace scaled to the load, with SLOs."""
    profile = load_profile(point.profile)
    trace = _trace(point.trace, point.part, point.first)
    prefill_instances, decode_instances = point.config.shape
    ranks = point.config.dp_attention or profile.ranks
    decode_only = point.config.stages == "decode"
    load = 1.0 if decode_only or point.busier else point.load
    workload = scale_to_load(trace, load, profile, instances=prefill_instances)
    requests, cached = workload.trace.requests, workload.cached_tokens
    slos = assign_slos(requests, cached, profile, point.slo, tpot=point.tpot_ms, seed=point.seed)
    scenario = Scenario.of(requests, cached, slos)
    if decode_only:
        return scenario.at_decode_load(point.load * decode_instances, profile, ranks)
    return scenario.at_busier_load(point.load, profile, ranks) if point.busier else scenario


def run(point: SweepPoint) -> dict[str, Any]:
    """Simulate a point.

    Returns:
        The figures of `kairos.sim.summary.summarise`, the bounds, and all fields of the point, its
        configuration included.
    """
    profile = load_profile(point.profile)
    scenario = scenario_of(point)
    config = point.config
    result = summarise(simulate(scenario, config, profile))
    result["lp_bound_ttft"] = None
    if point.bound:
        instances = config.shape[0]
        result["lp_bound_ttft"] = lp_bound_ttft(scenario, profile, instances)
        result["clairvoyant_ttft"] = clairvoyant_ttft(scenario, profile, instances)
        result["drop_reference_tpot"] = drop_reference_tpot(scenario, config, profile)
    described = asdict(point)
    flat = described.pop("config")
    flat["slack"] = config.slack._asdict()
    return {"simulated": True, **result, **described, **flat}


def run_checked(point: SweepPoint) -> dict[str, Any]:
    """`run`, with arithmetic errors as exceptions."""
    with np.errstate(all="raise", under="ignore"):
        return run(point)
