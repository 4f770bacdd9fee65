"""Simulate every arm on a trace, for a record of the evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.replay.evaluation.columns import SIMULATED_COLUMNS
from kairos.replay.evaluation.records import SimulatedRecord
from kairos.replay.plan.arms import arm_spec
from kairos.replay.report.goodput import largest_load
from kairos.sim.scenario import Scenario, decode_load
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise
from kairos.workload.load import scale_to_load
from kairos.workload.slo_sets import assign_slos
from kairos.workload.trace import Trace

UPSTREAM = ("fcfs", "lpm", "hrrn", "sjf", "fcfs-cap32", "sjf-cap64")
KAIROS = ("kairos-urgency", "kairos-slack", "kairos", "kairos-hold")
LOADS = (0.7, 0.9, 1.1)
BASELINE = "fcfs"
BASELINE_PERCENT = 60.0
SEARCHED = ("fcfs", "sjf", "kairos", "kairos-hold")
GOODPUT_PERCENT = 90.0
_TOLERANCE = 0.05
_BASELINE_TOLERANCE = 0.01  # attainment can fall steeply there


@dataclass(frozen=True, slots=True)
class SimulationStudy:
    """The part of a trace to simulate, and its SLOs.

    Attributes:
        label: name of the trace for readers.
        requests: number of requests taken from its start.
        slo_set: rule that gives each request its SLOs, such as "L3".
        tpot_ms: TPOT objective.
    """

    label: str
    requests: int
    slo_set: str
    tpot_ms: float


class _Simulator:
    """Simulates arms on one trace, one prefill and one decode instance.

    Load is that of the busier stage, so that conversations that prefill limits and reasoning that
    decode limits are loaded alike.

    Attributes:
        decode_load: decode load of the trace at prefill load 1.
    """

    def __init__(self, study: SimulationStudy, trace: Trace, profile: Profile) -> None:
        workload = scale_to_load(trace, 1.0, profile)
        requests = workload.trace.requests
        slos = assign_slos(
            requests, workload.cached_tokens, profile, study.slo_set, tpot=study.tpot_ms
        )
        self._scenario = Scenario.of(requests, workload.cached_tokens, slos)
        self._profile = profile
        self.decode_load = decode_load(self._scenario, profile)
        self.stretch = max(1.0, self.decode_load)

    def figures(self, arm: str, load: float) -> dict[str, float]:
        """Figures of the tables for one arm at one load."""
        profile = self._profile
        config = arm_spec(arm, profile.name).settings(profile)
        if config is None:
            raise InputError(f"arm {arm}: the simulator has no model of it")
        scaled = self._scenario.at_busier_load(load, profile)
        with np.errstate(all="raise", under="ignore"):
            found = summarise(simulate(scaled, config, profile))
        return {column.name: round(float(found[column.name]), 3) for column in SIMULATED_COLUMNS}


def simulate_trace(
    study: SimulationStudy,
    trace: Trace,
    profile: Profile,
    git_commit: str,
    progress: Callable[[str], None] = lambda _: None,
) -> SimulatedRecord:
    """Simulate every arm at every load, and search the goodput of some.

    Args:
        study: part of the trace and SLOs.
        trace: the whole trace.
        profile: latency profile of both instances.
        git_commit: commit to note in the record.
        progress: called with a line after each simulation.
    """
    first = Trace(trace.name, trace.sha256, trace.requests[: study.requests])
    simulator = _Simulator(study, first, profile)

    def figures(arm: str, load: float) -> dict[str, float]:
        found = simulator.figures(arm, load)
        progress(f"{study.label}, load {load:g}, {arm}: e2e {found['e2e_attainment']:.1f} %")
        return found

    baseline = largest_load(
        lambda load: figures(BASELINE, load)["e2e_attainment"],
        BASELINE_PERCENT,
        tolerance=_BASELINE_TOLERANCE,
    ).load
    loads = {
        f"{load:g}": {arm: figures(arm, load) for arm in (*UPSTREAM, *KAIROS)}
        for load in sorted({*LOADS, baseline})
        if load > 0.0
    }

    def goodput(arm: str) -> float:
        known = {float(load): found[arm]["e2e_attainment"] for load, found in loads.items()}
        return largest_load(
            lambda load: figures(arm, load)["e2e_attainment"], GOODPUT_PERCENT, known, _TOLERANCE
        ).load

    return SimulatedRecord(
        label=study.label,
        trace=trace.name,
        sha256=trace.sha256,
        requests=len(first.requests),
        slo_set=study.slo_set,
        tpot_ms=study.tpot_ms,
        profile=profile.name,
        git_commit=git_commit,
        stage="decode" if simulator.decode_load > 1.0 else "prefill",
        prefill_load=round(1.0 / simulator.stretch, 4),
        baseline_load=baseline,
        loads=loads,
        goodput={arm: goodput(arm) for arm in SEARCHED},
    )
