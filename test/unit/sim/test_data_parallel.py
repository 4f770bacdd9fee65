"""Decode servers with data-parallel attention."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from unit.sim.scenarios import flat_profile, one_by_one, poisson

from kairos.latency import KvLink, load_profile
from kairos.sim import decode_server as decode_module
from kairos.sim.config import PLACEMENTS, SimConfig
from kairos.sim.scenario import Scenario, decode_capacity_per_s
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise

PROFILE = load_profile("minimax-m2.5-dp8-h200")
SMALL = load_profile("tiny-fast")
ALONE = SimConfig(stages="decode", dp_attention=4)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return poisson(400, 40.0, None, 60)


VARIANTS = {
    **{
        f"{placement}, {policy}": SimConfig(
            "fcfs", policy, stages="decode", dp_attention=4, placement=placement
        )
        for placement in PLACEMENTS
        for policy in ("continuous", "slack")
    },
    "both stages": SimConfig(dp_attention=4),
    "as on the engine": SimConfig(dp_attention=2, instances="1P2D").as_on_engine(PROFILE),
    "as on the engine, in turn": SimConfig(
        "fcfs", "continuous", dp_attention=3, placement="round-robin"
    ).as_on_engine(PROFILE),
    "noise and bias": replace(ALONE, noise=0.3, decode_bias=1.2, hold=True),
    "no look-ahead": replace(ALONE, lookahead=False),
}


@pytest.mark.parametrize("profile", [PROFILE, SMALL], ids=["h200", "small"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_token_is_made_once(name, profile, scenario):
    done = simulate(scenario, VARIANTS[name], profile)
    records = done.records
    assert (records.made == scenario.output_tokens - 1).all()
    assert np.isfinite(records.last_s).all()
    for rank in (rank for server in done.decode for rank in server.ranks):
        assert len(rank.running) == len(rank.waiting) == 0
        assert rank.kv_tokens == rank.bound_tokens == rank.bound_requests == 0
    assert 0.0 <= summarise(done)["barrier_idle"] < 1.0


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_one_rank_is_simulated_as_without_data_parallel_attention(placement, scenario):
    without = simulate(scenario, SimConfig(), SMALL)
    one = simulate(scenario, SimConfig(dp_attention=1, placement=placement), SMALL)
    for field in ("first_s", "admitted_s", "last_s", "stall_s"):
        assert getattr(one.records, field).tobytes() == getattr(without.records, field).tobytes()
    assert summarise(one)["barrier_idle"] == 0.0


def test_a_short_request_waits_in_every_step_for_a_long_one_on_another_rank():
    two = Scenario(
        np.zeros(2),
        np.array([60_000, 100]),
        np.array([50, 50]),
        np.zeros(2, np.int64),
        np.full(2, 9.0),
        np.full(2, 0.05),
        np.zeros(2, np.int64),
    )
    config = replace(ALONE, dp_attention=2, placement="round-robin", decode_policy="continuous")
    done = simulate(two, config, msgspec.structs.replace(PROFILE, kv=KvLink(0.0, 1.0, 1e15)))
    step_s = PROFILE.decode.shared_s(2) + 60_000 * PROFILE.decode.per_context_token_s
    tpot_s = (done.records.last_s - done.records.first_s) / 49
    assert tpot_s[1] == pytest.approx(step_s, rel=0.02)
    # The short one waits for the attention of the long one: half of the time of both ranks.
    attention_share = 1.0 - PROFILE.decode.shared_s(2) / step_s
    assert summarise(done)["barrier_idle"] == pytest.approx(attention_share / 2, rel=0.05)


def test_requests_go_to_ranks_in_turn(monkeypatch):
    ranks = []
    receive = decode_module.DecodeServer.receive

    def noted(server, resident, rank):
        ranks.append(rank)
        receive(server, resident, rank)

    monkeypatch.setattr(decode_module.DecodeServer, "receive", noted)
    scenario = one_by_one([0.1 * at for at in range(6)], [2] * 6)
    config = replace(ALONE, dp_attention=3, placement="round-robin")
    simulate(scenario, config, flat_profile(0.01))
    assert ranks == [0, 1, 2, 0, 1, 2]


def test_the_capacity_of_ranks_shares_the_experts(scenario):
    one, eight = (decode_capacity_per_s(scenario, PROFILE, ranks) for ranks in (1, 8))
    # More ranks read the experts for more requests, so each holds fewer within the objective.
    assert 6.0 * one < eight < 8.0 * one


def test_late_placement_waits_less_at_the_barrier_than_turns():
    scenario = poisson(600, 40.0, None, 200, seed=3)
    idle = {
        placement: summarise(
            simulate(scenario, replace(ALONE, placement=placement, dp_attention=8), PROFILE)
        )["barrier_idle"]
        for placement in ("round-robin", "kairos")
    }
    assert idle["kairos"] < 0.6 * idle["round-robin"]


def test_ranks_select_no_less_than_all_while_admission_keeps_the_step_within_the_objective():
    scenario = poisson(800, 40.0, None, 200, seed=3)
    longer = replace(scenario, input_tokens=4 * scenario.input_tokens, ttft_s=10 * scenario.ttft_s)
    busy = longer.at_decode_load(0.95, PROFILE, 8)
    config = replace(ALONE, dp_attention=8, hold=True)
    assert summarise(simulate(busy, config, PROFILE))["tpot_attainment"] > 99.5
