"""Batches and steps composed one ahead."""

from dataclasses import replace

import numpy as np
import pytest
from unit.sim.scenarios import flat_profile, one_by_one

from kairos.sim.config import SimConfig
from kairos.sim.scenario import Scenario
from kairos.sim.simulation import simulate


def test_arrival_waits_for_the_batch_that_lookahead_has_composed():
    # Three prompts of a batch each at 0 s; a short urgent one during the first batch.
    scenario = Scenario(
        np.array([0.0, 0.0, 0.0, 0.05]),
        np.array([100, 100, 100, 1]),
        np.ones(4, np.int64),
        np.zeros(4, np.int64),
        np.array([9.0, 9.0, 9.0, 0.4]),
        np.full(4, 0.03),
        np.zeros(4, np.int64),
    )
    config = SimConfig(stages="prefill")
    ends = {
        lookahead: simulate(scenario, replace(config, lookahead=lookahead), flat_profile(0.1))
        for lookahead in (False, True)
    }
    assert ends[False].records.prefilled_s[3] == pytest.approx(0.2)
    assert ends[True].records.prefilled_s[3] == pytest.approx(0.3)


@pytest.mark.parametrize("policy", ["continuous", "slack"])
def test_prompt_waits_for_the_step_that_lookahead_has_composed(policy):
    # The second request arrives during the first step of the first request.
    scenario = one_by_one([0.0, 0.05], [10, 3])
    ends = {}
    for lookahead in (False, True):
        config = SimConfig("fcfs", policy, stages="decode", lookahead=lookahead)
        ends[lookahead] = simulate(scenario, config, flat_profile(0.1)).records
    # Two more tokens, from the second step on or from the third.
    assert ends[False].last_s[1] == pytest.approx(0.3)
    assert ends[True].last_s[1] == pytest.approx(0.4)
    assert ends[False].last_s[0] == ends[True].last_s[0] == pytest.approx(0.9)


def test_lookahead_runs_a_finished_request_once_more_without_effect():
    scenario = one_by_one([0.0, 0.9], [3, 2])
    for lookahead, busy_s in ((False, 0.3), (True, 0.5)):
        config = SimConfig("fcfs", "continuous", stages="decode", lookahead=lookahead)
        done = simulate(scenario, config, flat_profile(0.1))
        assert done.decode[0].busy_s == pytest.approx(busy_s)
        assert done.decode[0].wasted_rows == (2 if lookahead else 0)


@pytest.mark.parametrize("hold", [False, True])
def test_decode_server_sends_first_tokens_when_it_admits_requests(hold):
    # The KV of the second request arrives during the first step of the first request.
    scenario = one_by_one([0.0, 0.05], [10, 3])
    config = SimConfig("fcfs", "continuous", stages="decode", first_token="decode", hold=hold)
    records = simulate(scenario, config, flat_profile(0.1)).records
    # The second step begins and the third is composed; a held token waits for the third.
    assert records.first_s[1] == pytest.approx(0.2 if hold else 0.1)
    assert records.admitted_s[1] == pytest.approx(0.2)
    assert records.last_s[1] == pytest.approx(0.4)
