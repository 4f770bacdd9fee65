"""The same requests in the simulator: fidelity of each arm, and goodput without hours of runs.

The requests come from the records, so that a report can be made from records alone.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.replay.client.record import RequestRecord
from kairos.replay.plan.arms import arm_spec
from kairos.replay.report.goodput import TARGETS, Goodput, largest_load
from kairos.replay.report.summary import ArmSummary
from kairos.replay.run.header import RunHeader
from kairos.sim.config import SimConfig
from kairos.sim.scenario import Scenario
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise

COMPARED = (
    "ttft_attainment",
    "tpot_attainment",
    "tpot_attainment_engine_clock",
    "e2e_attainment",
    "longest10_ttft_attainment",
    "ttft_p50_s",
    "ttft_p99_s",
)
"""Figures whose difference is the fidelity."""


def scenario_of(records: Sequence[RequestRecord]) -> Scenario:
    """Return the requests of one run in the simulator's form.

    Prefix hits are those that the server reported, else those that the load assumes. A reported hit
    may be one token longer than the trace's, if the next token of two prompts is equal by chance.
    Under lpm that prompt then precedes all prompts whose hit ends where the trace's does.
    """
    names = sorted({r.slo_class for r in records})
    return Scenario(
        np.array([r.arrival_s for r in records], np.float64),
        np.array([r.input_tokens for r in records], np.int64),
        np.array([r.output_tokens for r in records], np.int64),
        np.array([r.prefix_hit for r in records], np.int64),
        np.array([r.slo_ttft_ms / 1e3 for r in records], np.float64),
        np.array([r.slo_tpot_ms / 1e3 for r in records], np.float64),
        np.array([names.index(r.slo_class) for r in records], np.int64),
    )


def settings_of(header: RunHeader) -> SimConfig | None:
    """Return the simulator's configuration of a run; None if the simulator has no model of it."""
    try:
        arm = arm_spec(header.arm, header.profile.name)
    except InputError:  # servers that the replay did not start
        return None
    profile = header.profile
    settings = arm.settings(profile)
    if settings is None or header.dp_attention != "1":
        return None
    # A handshake waits for passes of a decode server, which dilation makes longer.
    handshake_s = settings.handshake_s * header.dilate
    return replace(settings, instances=header.instances, handshake_s=handshake_s)


def simulated_figures(header: RunHeader, records: Sequence[RequestRecord]) -> dict[str, Any] | None:
    """Simulate a run and return the simulator's figures; None without a model."""
    settings = settings_of(header)
    if settings is None:
        return None
    return _figures(scenario_of(records), settings, header.profile)


def simulated_goodput(header: RunHeader, records: Sequence[RequestRecord]) -> list[Goodput] | None:
    """Search the goodput of an arm for each of TARGETS in the simulator.

    The requests are those of the run, with arrivals rescaled to each load.

    Returns:
        One result per target; None without a model.
    """
    settings = settings_of(header)
    if settings is None:
        return None
    scenario = scenario_of(records)
    known: dict[float, float] = {}

    def attainment(load: float) -> float:
        scaled = replace(scenario, arrival_s=scenario.arrival_s * (header.load / load))
        known[load] = float(_figures(scaled, settings, header.profile)["e2e_attainment"])
        return known[load]

    return [largest_load(attainment, target, dict(known)) for target in TARGETS]


def fidelity(
    simulated: dict[str, Any] | None, measured: ArmSummary
) -> dict[str, float | None] | None:
    """Return simulator minus engine, in points and seconds; None without a model."""
    if simulated is None:
        return None
    differences: dict[str, float | None] = {}
    for name in COMPARED:
        value = getattr(measured, name)
        finite = value is not None and math.isfinite(value)
        differences[name] = round(float(simulated[name]) - value, 4) if finite else None
    return differences


def _figures(scenario: Scenario, settings: SimConfig, profile: Profile) -> dict[str, Any]:
    with np.errstate(all="raise", under="ignore"):
        return summarise(simulate(scenario, settings, profile))
