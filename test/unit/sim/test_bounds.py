import numpy as np
import pytest
from unit.sim.scenarios import flat_profile, poisson

from kairos.latency import load_profile
from kairos.sim.bounds import clairvoyant_ttft, drop_reference_tpot, lp_bound_ttft
from kairos.sim.config import SimConfig
from kairos.sim.scenario import Scenario
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise
from kairos.sim.sweep import sweep

SMALL = load_profile("tiny-fast")


def burst(requests: int, deadline_s: float) -> Scenario:
    """`requests` of one second's work each at the same instant."""
    zeros = np.zeros(requests, np.int64)
    tokens = np.full(requests, 100, np.int64)
    due = np.full(requests, deadline_s)
    return Scenario(np.zeros(requests), tokens, zeros + 1, zeros, due, due, zeros)


def test_references_keep_requests_that_fit_before_their_deadline():
    profile = flat_profile(1.0)
    scenario = burst(10, 4.5)
    scenario.arrival_s[-1] = 1e-6  # a span
    assert clairvoyant_ttft(scenario, profile) == pytest.approx(40.0)
    assert clairvoyant_ttft(scenario, profile, instances=2) == pytest.approx(90.0)
    assert lp_bound_ttft(scenario, profile) >= 45.0 - 1e-6


def test_no_simulated_policy_exceeds_the_bound():
    scenario = poisson(600, 14.0, None, 1, seed=5)
    bound = lp_bound_ttft(scenario, SMALL)
    for policy in ("fcfs", "sjf", "urgency"):
        done = simulate(scenario, SimConfig(policy, stages="prefill", lookahead=False), SMALL)
        assert summarise(done)["ttft_attainment"] <= bound + 1e-9
    assert bound < 100.0


def test_bound_of_an_idle_server_is_complete():
    assert lp_bound_ttft(poisson(20, 0.1, 100, 1), SMALL) == 100.0


def test_drop_reference_gains_by_dropping_and_counts_dropped_requests_as_missed():
    scenario = poisson(300, 20.0, None, 60).at_decode_load(1.3, SMALL)
    config = SimConfig("fcfs", "continuous", stages="decode")
    own = summarise(simulate(scenario, config, SMALL))["tpot_attainment"]
    reference = drop_reference_tpot(scenario, config, SMALL)
    assert own < reference <= 99.0


def test_sweep_keeps_the_order_of_its_points():
    assert sweep(_square, [3, 1, 2], workers=2) == [9, 1, 4]
    assert sweep(_square, [5]) == [25]


def _square(x: int) -> int:
    return x * x
