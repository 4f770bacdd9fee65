"""Decode baselines."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.latency import load_profile
from kairos.latency.table import StepTable
from kairos.policy.residents import DecodeResident, Residents
from kairos.sim.baselines.decode import ContinuousPolicy, GreedyPolicy

PROFILE = load_profile("minimax-m2.5-tp4-h200")
TABLE = StepTable.from_model(PROFILE.decode, 256, PROFILE.limits.kv_tokens)
TPOT_S = 0.03


def held(residents: list[DecodeResident]) -> Residents:
    table = Residents()
    for one in residents:
        table.add(one)
    return table


def running(table: Residents) -> set[int]:
    rows = table.rows
    return set(rows["id"][rows["runs"]].tolist())


rows_strategy = st.lists(
    st.tuples(st.integers(1, 120_000), st.floats(-5.0, 5.0), st.integers(0, 500)),
    min_size=1,
    max_size=40,
).map(
    lambda rows: [
        DecodeResident(i, context, tokens, first, max(first, 0.0), TPOT_S)
        for i, (context, first, tokens) in enumerate(rows)
    ]
)


@settings(max_examples=60, deadline=None)
@given(rows_strategy, st.randoms(use_true_random=False))
def test_greedy_leaves_no_batch_empty_and_ignores_the_order_of_insertion(residents, random):
    shuffled = list(residents)
    random.shuffle(shuffled)
    tables = held(residents), held(shuffled)
    steps = [GreedyPolicy(TABLE, 256).select(table.rows, 0.0) for table in tables]
    assert running(tables[0]) == running(tables[1]) != set()
    context = tables[0].rows["context_tokens"][tables[0].rows["runs"]]
    assert steps[0] == pytest.approx(steps[1])
    assert steps[0] == pytest.approx(TABLE.step_s(len(context), context.sum(), context.max()))


def test_greedy_packs_short_contexts_within_the_tightest_slack():
    # All due in 30 ms; together they would take longer than that.
    residents = [DecodeResident(i, 20_000 * (i + 1), 0, 0.0, 0.0, TPOT_S) for i in range(12)]
    table = held(residents)
    assert GreedyPolicy(TABLE, 256).select(table.rows, 0.0) <= TPOT_S
    chosen = running(table)
    assert 0 < len(chosen) < 12
    assert chosen == set(range(len(chosen)))


def test_continuous_runs_every_resident():
    table = held([DecodeResident(i, 50_000, 0, -9.0, -9.0, TPOT_S) for i in range(40)])
    policy = ContinuousPolicy(TABLE, 256)
    assert policy.select(table.rows, 0.0) == pytest.approx(TABLE.step_s(40, 2_000_000))
    assert running(table) == set(range(40))


@pytest.mark.parametrize("kind", [ContinuousPolicy, GreedyPolicy])
def test_admission_is_in_order_of_arrival_and_stops_at_a_request_that_does_not_fit(kind):
    waiting = held(
        [
            DecodeResident(1, 100, 0, 3.0, 3.0, TPOT_S),
            DecodeResident(2, 70_000, 0, 2.0, 2.0, TPOT_S),
            DecodeResident(3, 100, 0, 1.0, 1.0, TPOT_S),
        ]
    )
    policy = kind(TABLE, 256)
    admitted = policy.admit(waiting.rows, 5.0, 50_000, 100_000, 10)
    assert waiting.rows["id"][admitted].tolist() == [3]
    assert len(policy.admit(waiting.rows, 5.0, 50_000, 1_000_000, 2)) == 2


@pytest.mark.parametrize("kind", [ContinuousPolicy, GreedyPolicy])
def test_least_output_and_longest_context_are_retracted_first(kind):
    table = held(
        [
            DecodeResident(1, 900, 5, 0.0, 0.0, TPOT_S),
            DecodeResident(2, 100, 50, 0.0, 0.0, TPOT_S),
            DecodeResident(3, 100, 5, 0.0, 0.0, TPOT_S),
        ]
    )
    order = kind(TABLE, 256).retention_order(table.rows, 1.0)
    assert table.rows["id"][order].tolist() == [2, 3, 1]


@settings(max_examples=60, deadline=None)
@given(rows_strategy, st.integers(-100_000, 100_000))
def test_greedy_does_not_depend_on_the_origin_of_the_clock(residents, shift):
    moved = [
        replace(one, first_token_s=one.first_token_s + shift, last_token_s=one.last_token_s + shift)
        for one in residents
    ]
    here, there = held(residents), held(moved)
    GreedyPolicy(TABLE, 256).select(here.rows, 0.0)
    GreedyPolicy(TABLE, 256).select(there.rows, float(shift))
    assert running(here) == running(there)
