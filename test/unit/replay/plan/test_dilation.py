"""Dilation leaves attainment unchanged; the simulator on the same requests."""

import msgspec
import pytest

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.client.record import ReceivedTokens, RequestOutcome, make_record
from kairos.replay.plan.dilation import dilated
from kairos.replay.plan.plan import PlanConfig, make_plan
from kairos.replay.report.simulated import (
    fidelity,
    scenario_of,
    simulated_figures,
    simulated_goodput,
)
from kairos.replay.report.summary import summarise
from kairos.workload.synthetic import generate
from support.replay import header

PROFILE = load_profile("minimax-m2.5-tp4-h200")
TRACE = generate("mooncake-conversation", 250, 0)
FACTOR = 2.0  # a power of two stays exact in binary


def figures(arm: str, factor: float) -> dict:
    plan = make_plan(TRACE, PROFILE, PlanConfig(load=0.9, dilate=factor))
    records = [make_record(p, f"r{p.index}", RequestOutcome.OK) for p in plan.requests]
    head = header(arm, profile=dilated(PROFILE, factor), dilate=factor)
    found = simulated_figures(head, records)
    assert found is not None
    return found


@pytest.mark.parametrize("arm", ["fcfs", "hrrn", "sjf-cap32"])
def test_attainment_is_the_same_under_dilation(arm: str) -> None:
    fast, slow = figures(arm, 1.0), figures(arm, FACTOR)
    for name in ("ttft_attainment", "tpot_attainment", "e2e_attainment"):
        assert slow[name] == fast[name]
    assert slow["ttft_p99_s"] == pytest.approx(FACTOR * fast["ttft_p99_s"])
    assert slow["tokens_per_s"] == pytest.approx(fast["tokens_per_s"] / FACTOR)


@pytest.mark.parametrize("arm", ["kairos-urgency", "kairos", "kairos-hold"])
def test_attainment_is_nearly_the_same_with_constants_in_seconds(arm: str) -> None:
    fast, slow = figures(arm, 1.0), figures(arm, FACTOR)
    assert slow["e2e_attainment"] == pytest.approx(fast["e2e_attainment"], abs=1.0)


def test_dilated_profile_takes_longer_for_everything() -> None:
    slow = dilated(PROFILE, FACTOR)
    assert slow.decode.step_s(32, 400_000) == FACTOR * PROFILE.decode.step_s(32, 400_000)
    assert slow.kv.transfer_s(9000) == FACTOR * PROFILE.kv.transfer_s(9000)
    assert slow.limits == PROFILE.limits
    assert dilated(PROFILE, 1.0) is PROFILE


def test_arrivals_and_slos_of_the_plan_stretch() -> None:
    fast = make_plan(TRACE, PROFILE, PlanConfig(load=0.9, duration_s=60))
    slow = make_plan(TRACE, PROFILE, PlanConfig(load=0.9, duration_s=60, dilate=FACTOR))
    assert len(slow.requests) == len(fast.requests)
    for a, b in zip(fast.requests, slow.requests, strict=True):
        assert b.request.arrival_s == FACTOR * a.request.arrival_s
        assert (b.slo.ttft_ms, b.slo.tpot_ms) == (FACTOR * a.slo.ttft_ms, FACTOR * a.slo.tpot_ms)
    assert slow.workload.time_scale == FACTOR * fast.workload.time_scale


@pytest.mark.parametrize("factor", [0.0, 0.5, 21.0, float("nan")])
def test_bad_factors_are_refused(factor: float) -> None:
    with pytest.raises(InputError, match="--dilate"):
        make_plan(TRACE, PROFILE, PlanConfig(load=0.9, dilate=factor))


def test_fidelity_is_simulator_minus_engine() -> None:
    plan = make_plan(TRACE, PROFILE, PlanConfig(load=0.5))
    records = [
        make_record(p, f"r{p.index}", RequestOutcome.OK, received=ReceivedTokens(times_s=[0.001]))
        for p in plan.requests
    ]
    head = header("fcfs", profile=PROFILE, load=0.5)
    measured = summarise([(head, records)])
    simulated = simulated_figures(head, records)
    found = fidelity(simulated, measured)
    assert simulated is not None
    assert found is not None
    assert found["ttft_attainment"] == pytest.approx(simulated["ttft_attainment"] - 100, abs=1e-3)
    assert found["tpot_attainment_engine_clock"] is None  # not traced
    assert simulated_figures(msgspec.structs.replace(head, arm="url"), records) is None
    assert fidelity(None, measured) is None
    assert len(scenario_of(records)) == len(records)


def test_simulated_prefix_hits_are_those_the_server_reported() -> None:
    """Under lpm one token of prefix hit can change the order of the queue."""
    planned = make_plan(TRACE, PROFILE, PlanConfig(load=0.5)).requests[:3]
    hits = [None, 7, planned[2].request.input_tokens]
    records = [
        make_record(
            p,
            f"r{p.index}",
            RequestOutcome.OK,
            received=ReceivedTokens(times_s=[0.001], cached_tokens=hit),
        )
        for p, hit in zip(planned, hits, strict=True)
    ]
    expected = [planned[0].cached_tokens, 7, planned[2].request.input_tokens - 1]
    assert scenario_of(records).cached_tokens.tolist() == expected


def test_simulated_goodput_uses_the_same_requests() -> None:
    plan = make_plan(TRACE, PROFILE, PlanConfig(load=0.9))
    records = [make_record(p, f"r{p.index}", RequestOutcome.OK) for p in plan.requests]
    fcfs = simulated_goodput(header("fcfs", profile=PROFILE), records)
    kairos = simulated_goodput(header("kairos", profile=PROFILE), records)
    assert fcfs is not None
    assert kairos is not None
    assert [g.target for g in fcfs] == [90.0, 99.0]
    assert fcfs[0].load >= fcfs[1].load
    assert kairos[0].load > 1.5 * fcfs[0].load
