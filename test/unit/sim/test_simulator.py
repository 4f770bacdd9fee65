"""Conservation, determinism and analytic cases of the simulator."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from unit.sim.scenarios import flat_profile, poisson

from kairos.errors import InputError
from kairos.latency import DecodeModel, KvLink, load_profile
from kairos.sim import decode_server as decode_module
from kairos.sim.baselines.decode import ContinuousPolicy
from kairos.sim.baselines.prefill import BASELINES
from kairos.sim.config import SimConfig
from kairos.sim.result import SimResult
from kairos.sim.scenario import Scenario
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise

PROFILE = load_profile("minimax-m2.5-tp4-h200")
SMALL = load_profile("tiny-fast")

VARIANTS = {
    "default": SimConfig(),
    "upstream": SimConfig("fcfs", "continuous"),
    "no look-ahead, hold": SimConfig(lookahead=False, hold=True),
    "two by two": SimConfig(instances="2P2D"),
    "early binding": SimConfig(instances="3P2D", routing="round-robin"),
    "least loaded": SimConfig(instances="2P1D", routing="least-loaded"),
    "back-pressure": SimConfig(preallocate=True),
    "back-pressure, two by two": SimConfig(instances="2P2D", preallocate=True, contention=True),
    "back-pressure in order": SimConfig("fcfs", "continuous", preallocate=True),
    "no decode look-ahead": SimConfig(decode_lookahead=False),
    "hold and noise": SimConfig(hold=True, noise=0.5),
    "contention, noise, bias": SimConfig(contention=True, noise=0.2, decode_bias=0.8),
    "greedy": SimConfig("sjf", "greedy", change_cost_s=5e-4),
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return poisson(400, 8.0, None, 40)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_token_is_made_once_and_in_order_of_time(name, scenario):
    done = simulate(scenario, VARIANTS[name], SMALL)
    records = done.records
    computed = sum(server.tokens for server in done.prefill)
    assert computed == (scenario.input_tokens - scenario.cached_tokens).sum()
    assert all(len(server.queue) == 0 for server in done.prefill)
    for rank in (rank for server in done.decode for rank in server.ranks):
        assert len(rank.running) == len(rank.waiting) == 0
        assert rank.kv_tokens == rank.reserved_tokens == 0
    decoded = scenario.output_tokens > 1
    assert (records.prefilled_s > scenario.arrival_s).all()
    assert (records.first_s >= records.prefilled_s).all()
    assert (records.admitted_s >= records.prefilled_s)[decoded].all()
    assert (records.last_s > records.first_s)[decoded].all()
    assert (records.made == scenario.output_tokens - 1).all()
    assert np.isnan(records.admitted_s[~decoded]).all()


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_serves_every_request(name, scenario):
    done = simulate(scenario, SimConfig(name, "continuous", stages="prefill"), SMALL)
    assert np.isfinite(done.records.prefilled_s).all()


@pytest.mark.parametrize("name", ["default", "contention, noise, bias"])
def test_same_seed_gives_the_same_bytes(name, scenario):
    one, other = (simulate(scenario, VARIANTS[name], SMALL).records for _ in range(2))
    for field in ("prefilled_s", "first_s", "last_s", "stall_s"):
        assert getattr(one, field).tobytes() == getattr(other, field).tobytes()


@pytest.mark.parametrize("policy", ["continuous", "slack"])
def test_kv_never_exceeds_capacity_when_outputs_overrun_it(policy, monkeypatch):
    profile = flat_profile(0.01, kv_tokens=2_000)
    peak = []
    original = decode_module.DecodeServer.start

    def watched(server, now_s):
        end = original(server, now_s)
        (rank,) = server.ranks
        held = int(rank.running.rows["context_tokens"].sum())
        assert rank.kv_tokens == held
        peak.append(held)
        return end

    monkeypatch.setattr(decode_module.DecodeServer, "start", watched)
    done = simulate(poisson(120, 30.0, 90, 150), SimConfig("fcfs", policy), profile)
    assert max(peak) <= 2_000
    assert done.decode[0].retractions > 0
    assert np.isfinite(done.records.last_s).all()


@pytest.mark.parametrize("lookahead", [False, True])
def test_token_counts_and_stalls_follow_from_token_times(lookahead, monkeypatch, scenario):
    times: dict[int, list[float]] = {}
    original = decode_module.DecodeServer.finish

    def watched(server, step, now_s):
        for request in step.batches[0].tolist():
            seen = times.setdefault(request, [])
            if len(seen) < scenario.output_tokens[request] - 1:
                seen.append(now_s)
        composed = server.next_step
        ahead = set() if composed is None else set(composed.batches[0].tolist())
        for row in server.ranks[0].running.rows:
            request = int(row["id"])
            assert row["output_tokens"] == len(times.get(request, [])) + (request in ahead)
        return original(server, step, now_s)

    monkeypatch.setattr(decode_module.DecodeServer, "finish", watched)
    done = simulate(scenario, SimConfig(lookahead=lookahead), SMALL)
    for request, seen in times.items():
        assert len(seen) == scenario.output_tokens[request] - 1
        assert done.records.made[request] == len(seen)
        assert done.records.last_s[request] == seen[-1]
        gaps = np.diff([done.records.first_s[request], *seen])
        assert done.records.stall_s[request] == pytest.approx(gaps.max())


def constant_service(rho: float, seed: int) -> tuple[np.ndarray, Scenario]:
    """Waits of one server whose every prompt takes 0.1 s, load rho."""
    # Prompts as long as a chunk: one request per batch.
    scenario = poisson(20_000, rho / 0.1, 100, 1, seed)
    config = SimConfig("fcfs", stages="prefill", lookahead=False)
    done = simulate(scenario, config, flat_profile(0.1))
    return done.records.prefilled_s - scenario.arrival_s - 0.1, scenario


def test_waits_with_constant_service_follow_the_m_d_1_queue():
    rho = 0.5
    waits = np.concatenate([constant_service(rho, seed)[0] for seed in range(4, 8)])
    assert waits.mean() == pytest.approx(rho * 0.1 / (2 * (1 - rho)), rel=0.02)


def test_waits_with_constant_service_follow_lindleys_recursion():
    waits, scenario = constant_service(0.9, seed=9)
    expected = np.zeros(len(waits))
    for i, gap in enumerate(np.diff(scenario.arrival_s), start=1):
        expected[i] = max(0.0, expected[i - 1] + 0.1 - gap)
    assert waits == pytest.approx(expected, abs=1e-6)


def test_decode_of_one_request_takes_one_step_per_token():
    scenario = replace(poisson(50, 1.0, 50, 100), arrival_s=10.0 * np.arange(50))
    done = simulate(scenario, SimConfig(lookahead=False), flat_profile(0.01))
    expected = scenario.arrival_s + 0.01 + 99 * 0.01
    assert done.records.last_s == pytest.approx(expected, rel=1e-6)


def test_retracted_request_pays_for_moving_out_and_in():
    fast = flat_profile(0.01, kv_tokens=2_000)
    # One byte a token: half a millisecond each way and token.
    slow = msgspec.structs.replace(fast, kv=KvLink(0.0, 1.0, 2_000.0))
    scenario = poisson(60, 30.0, 90, 150)
    config = SimConfig("fcfs", "continuous", stages="decode")
    free, paid = (simulate(scenario, config, profile).decode[0] for profile in (fast, slow))
    assert free.retractions > 0
    assert paid.busy_s > free.busy_s + 2 * 90 * 0.5e-3


def test_held_first_token_is_sent_before_the_deadline(scenario):
    records = simulate(scenario, SimConfig(hold=True), SMALL).records
    deadline = scenario.arrival_s + scenario.ttft_s
    moved = records.first_s > records.prefilled_s + 1e-12
    assert moved.any()
    assert (records.first_s[moved] < deadline[moved]).all()
    assert (records.first_s >= records.prefilled_s).all()
    late = records.prefilled_s > deadline
    assert not moved[late].any()


def test_urgency_and_slack_beat_first_come_first_served_under_load():
    scenario = poisson(1_500, 11.0, None, 60, seed=3)
    figures = {
        name: summarise(simulate(scenario, config, SMALL))["e2e_attainment"]
        for name, config in (("base", VARIANTS["upstream"]), ("kairos", SimConfig()))
    }
    assert figures["kairos"] > figures["base"] + 10


def test_part_of_the_requests_can_be_counted(scenario):
    done = simulate(scenario, SimConfig(), SMALL)
    mask = np.arange(len(scenario)) < 100
    parts = [summarise(done, chosen) for chosen in (mask, ~mask)]
    whole = summarise(done)
    mean = (100 * parts[0]["e2e_attainment"] + 300 * parts[1]["e2e_attainment"]) / 400
    assert [part["requests"] for part in parts] == [100, 300]
    assert whole["e2e_attainment"] == pytest.approx(mean)


def test_one_request_gives_finite_figures():
    done: SimResult = simulate(poisson(1, 1.0, 10, 1), SimConfig(), SMALL)
    figures = summarise(done)
    assert figures["e2e_attainment"] == 100.0
    assert np.isnan(figures.pop("tpot_mean_s")), "its only token is the first one"
    assert all(value == value for value in figures.values() if isinstance(value, float))


@pytest.mark.parametrize("preallocate", [False, True])
def test_without_objectives_kairos_serves_as_upstream_does(preallocate):
    made = poisson(300, 6.0, None, 60)
    none = np.full(len(made), np.inf)
    scenario = replace(made, ttft_s=none, tpot_s=none)
    upstream, kairos = (
        simulate(scenario, SimConfig(*policies, preallocate=preallocate), PROFILE)
        for policies in (("fcfs", "continuous"), ("urgency", "slack"))
    )
    assert (kairos.records.first_s == upstream.records.first_s).all()
    assert (kairos.records.last_s == upstream.records.last_s).all()
    figures = summarise(kairos)
    assert np.isnan(figures["e2e_attainment"]), "nothing is counted"
    assert figures["goodput_tokens_per_s"] == 0.0


def test_best_effort_requests_count_in_no_attainment():
    made = poisson(200, 3.0, None, 60)
    chosen = np.arange(len(made)) % 2 == 0
    scenario = replace(
        made,
        ttft_s=np.where(chosen, np.inf, made.ttft_s),
        tpot_s=np.where(chosen, np.inf, made.tpot_s),
    )
    done = simulate(scenario, SimConfig(), PROFILE)
    assert (done.records.made == made.output_tokens - 1).all(), "all are served"
    assert summarise(done)["e2e_attainment"] == summarise(done, ~chosen)["e2e_attainment"]


requests = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1e-9, 0.01, 1.0, 1e4]),
        st.sampled_from([1, 7, 3_000, 90_000]),
        st.sampled_from([1, 2, 40]),
        st.sampled_from([1e-6, 0.5, 1e5]),
    ),
    min_size=1,
    max_size=12,
)
configs = st.builds(
    SimConfig,
    prefill_policy=st.sampled_from(["fcfs", "urgency"]),
    decode_policy=st.sampled_from(["continuous", "greedy", "slack"]),
    instances=st.sampled_from(["1P1D", "2P2D"]),
    lookahead=st.booleans(),
    hold=st.booleans(),
    preallocate=st.booleans(),
    contention=st.booleans(),
    noise=st.sampled_from([0.0, 0.3]),
)


@hypothesis_settings(max_examples=40, deadline=None)
@given(requests, configs)
def test_any_requests_are_served_to_their_last_token_with_finite_figures(rows, config):
    gaps, inputs, outputs, slos = (np.array(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows), np.int64)
    scenario = Scenario(np.cumsum(gaps), inputs, outputs, zeros, slos, slos, zeros)
    done = simulate(scenario, config, SMALL)
    records = done.records
    assert (records.made == outputs - 1).all()
    assert (records.first_s > scenario.arrival_s).all()
    assert (records.last_s >= records.first_s).all()
    assert (records.stall_s >= 0.0).all()
    ranks = [rank for server in done.decode for rank in server.ranks]
    assert all(rank.kv_tokens == rank.reserved_tokens == 0 for rank in ranks)
    figures = summarise(done)
    if (outputs == 1).all():
        del figures["tpot_mean_s"]
    assert all(np.isfinite(value) for value in figures.values() if isinstance(value, float))


@pytest.mark.parametrize("output_tokens", [1, 4])
def test_transfer_is_part_of_ttft_where_decode_sends_the_first_token(output_tokens):
    """The transfer is then part of TTFT, and no longer of TPOT."""
    scenario = poisson(1, 1.0, 4000, output_tokens)
    seen = {}
    for server in ("prefill", "decode"):
        config = SimConfig("fcfs", "continuous", first_token=server)
        records = simulate(scenario, config, PROFILE).records
        seen[server] = float(records.first_s[0]), float(records.last_s[0])
    transfer = PROFILE.kv.transfer_s(4000)
    assert seen["decode"][0] - seen["prefill"][0] == pytest.approx(transfer)
    if output_tokens > 1:
        assert seen["decode"][1] == seen["prefill"][1]
    else:
        assert seen["decode"][1] == seen["decode"][0]


def test_request_longer_than_all_memory_is_an_error_with_its_number():
    scenario = poisson(5, 1.0, 90, 20)
    third = replace(scenario, output_tokens=np.array([9, 10, 1, 11, 9]))
    profile = flat_profile(0.01, kv_tokens=109)
    with pytest.raises(InputError, match="request 0: prompt and output have 110"):
        simulate(scenario, SimConfig(), profile)
    with pytest.raises(InputError, match="request 3"):
        simulate(third, SimConfig(), flat_profile(0.01, kv_tokens=100))
    simulate(scenario, SimConfig(stages="prefill"), profile)


def test_lengths_are_learned_without_the_first_token(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ContinuousPolicy, "completed", lambda _, group, tokens: seen.append((group, tokens))
    )
    simulate(poisson(3, 1.0, 50, 7), SimConfig("fcfs", "continuous"), SMALL)
    assert seen == [(0, 6)] * 3


def test_urgency_keeps_no_request_waiting_for_long_below_capacity():
    scenario = poisson(2_000, 5.0, None, 1, seed=7)
    done = simulate(scenario, SimConfig(stages="prefill"), SMALL)
    assert 0.8 < done.prefill[0].busy_s / scenario.arrival_s[-1] < 0.9
    figures = summarise(done)
    assert figures["ttft_attainment"] < 100.0
    assert figures["max_ttft_over_slo"] < 15.0


def test_decode_cap_is_at_most_the_profiles_batch():
    profile = flat_profile(0.01, max_batch=4)
    scenario = poisson(40, 100.0, 100, 20)
    capped = [
        simulate(scenario, SimConfig("fcfs", policy, decode_cap=cap), profile).records.last_s
        for policy in ("continuous", "slack")
        for cap in (0, 64)
    ]
    assert np.array_equal(capped[0], capped[1])
    assert np.array_equal(capped[2], capped[3])


@hypothesis_settings(max_examples=8, deadline=None)
@given(st.sampled_from([5, 20, 50, 100]), st.floats(0.3, 1.1), st.floats(0.7, 1.2))
def test_an_objective_out_of_reach_costs_no_throughput(base_ms, share, load):
    """Steps of one request take about as long as the TPOT objective or longer."""
    model = DecodeModel(base_ms / 1e3, 0.0, 1.0, 0.0, 2e-4)
    profile = msgspec.structs.replace(PROFILE, decode=model)
    rate = load * 256 / (model.step_s(256, 0) * 100)
    scenario = poisson(1_500, rate, None, 100)
    scenario = replace(scenario, tpot_s=np.full(1_500, share * base_ms / 1e3))
    rates = [
        summarise(simulate(scenario, SimConfig(stages="decode", decode_policy=policy), profile))
        for policy in ("slack", "continuous")
    ]
    assert rates[0]["tokens_per_busy_s"] >= 0.97 * rates[1]["tokens_per_busy_s"]
