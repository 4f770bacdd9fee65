"""Admission in closed loop."""

import numpy as np
import pytest
from unit.sim.scenarios import poisson

from kairos.latency import load_profile
from kairos.sim.config import SimConfig
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise

SMALL = load_profile("tiny-fast")


def test_rejected_requests_are_not_served_and_count_as_missed():
    scenario = poisson(1_500, 30.0, None, 60, seed=3)
    closed = simulate(scenario, SimConfig(admission=True), SMALL)
    refused = closed.records.refused
    assert 0 < refused.sum() < len(scenario)
    assert np.isnan(closed.records.first_s[refused]).all()
    assert np.isfinite(closed.records.last_s[~refused]).all()
    assert sum(server.tokens for server in closed.prefill) == scenario.input_tokens[~refused].sum()
    figures, plain = summarise(closed), summarise(simulate(scenario, SimConfig(), SMALL))
    assert figures["refused"] == refused.sum()
    served = figures["e2e_attainment_of_admitted"] * (1.0 - refused.mean())
    assert figures["e2e_attainment"] == pytest.approx(served)
    assert figures["max_ttft_over_slo"] < plain["max_ttft_over_slo"]


def test_idle_server_rejects_no_request():
    scenario = poisson(100, 0.2, None, 5)
    assert not simulate(scenario, SimConfig(admission=True), SMALL).records.refused.any()


def test_no_tokens_are_made_for_rejected_requests():
    scenario = poisson(1_500, 30.0, None, 60, seed=3)
    done = simulate(scenario, SimConfig(admission=True), SMALL)
    figures = summarise(done)
    made = scenario.output_tokens[~done.records.refused].sum()
    assert figures["tokens_per_s"] * figures["makespan_s"] == pytest.approx(made)
