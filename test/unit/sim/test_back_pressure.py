"""No prefill without decode memory."""

import numpy as np
import pytest
from unit.sim.scenarios import flat_profile, poisson

from kairos.latency import load_profile
from kairos.sim import decode_server as decode_module
from kairos.sim.config import SimConfig
from kairos.sim.scenario import Scenario
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise

PROFILE = load_profile("minimax-m2.5-tp4-h200")


def test_feasible_prompts_get_memory_before_infeasible_ones():
    """Decode memory suffices for ten prompts, which hold it for long. A burst of infeasible prompts
    must not take it from the feasible ones."""
    n = 40
    ones = np.ones(n, np.int64)
    infeasible = np.arange(n) < 20
    scenario = Scenario(
        np.where(infeasible, 0.0, 1.0 + 0.5 * np.arange(-20, 20)),
        90 * ones,
        50 * ones,
        0 * ones,
        np.where(infeasible, 1e-3, 3.0),
        np.full(n, 9.0),
        0 * ones,
    )
    profile = flat_profile(0.05, kv_tokens=10 * 650)
    attained = {}
    for grants in ("arrival", "deadline"):
        config = SimConfig(preallocate=True, grants=grants)
        done = simulate(scenario, config, profile)
        assert np.isfinite(done.records.last_s).all()
        attained[grants] = summarise(done, ~infeasible)["ttft_attainment"]
    assert attained["deadline"] == 100.0
    assert attained["arrival"] < 90.0


def test_memory_of_a_request_with_one_token_is_granted_again_without_a_step():
    """Otherwise the second request would never be prefilled."""
    scenario = poisson(2, 1000.0, 90_000, 1)
    config = SimConfig("fcfs", "continuous", preallocate=True)
    profile = flat_profile(0.01, kv_tokens=100_000)
    records = simulate(scenario, config, profile).records
    assert np.isfinite(records.last_s).all()


def test_no_prompt_is_prefilled_without_a_row_on_a_decode_server(monkeypatch):
    largest = 0
    receive = decode_module.DecodeServer.receive

    def counted(server, resident, rank):
        nonlocal largest
        receive(server, resident, rank)
        ranks = server.ranks
        largest = max(largest, len(ranks[rank].running) + len(ranks[rank].waiting))

    monkeypatch.setattr(decode_module.DecodeServer, "receive", counted)
    profile = flat_profile(0.01, max_batch=40)
    scenario = poisson(400, 200.0, 100, 50)
    for config in (
        SimConfig(preallocate=True),
        SimConfig("fcfs", "continuous", preallocate=True),
    ):
        simulate(scenario, config, profile)
        assert largest <= 40
    simulate(scenario, SimConfig(), profile)
    assert largest > 40


def test_prefill_begins_after_the_handshake():
    seen = {}
    for handshake_s in (0.0, 0.5):
        config = SimConfig("fcfs", "continuous", preallocate=True, handshake_s=handshake_s)
        seen[handshake_s] = simulate(poisson(1, 1.0, 4000, 9), config, PROFILE).records
    assert seen[0.5].prefilled_s - seen[0.0].prefilled_s == pytest.approx([0.5])
