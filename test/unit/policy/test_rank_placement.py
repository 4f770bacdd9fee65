"""Binding of requests to data-parallel ranks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.latency import load_profile
from kairos.latency.ranks import LockStep, RankLoad
from kairos.latency.table import StepTable
from kairos.policy.rank_placement import (
    AGED_S,
    STEP_SHARE,
    RankState,
    WaitingRequest,
    joins_within,
    lock_step_params,
    place,
    with_request,
)
from kairos.policy.slack import SlackParams

PROFILE = load_profile("minimax-m2.5-dp8-h200")
TABLE = StepTable.from_model(PROFILE.decode, 256, PROFILE.limits.kv_tokens)
TPOT_S = 0.03


def rank(*contexts: int, free_tokens: float = 800_000.0, slots: int = 64) -> RankState:
    load = RankLoad()
    for context in contexts:
        load = with_request(load, context)
    return RankState(
        load, free_tokens, slots, np.array(contexts, np.float64), np.zeros(len(contexts))
    )


def waiting(*contexts: int, waited_s: float = 0.0) -> list[WaitingRequest]:
    return [WaitingRequest(context, TPOT_S, waited_s) for context in contexts]


def placed(
    queue: list[WaitingRequest], ranks: list[RankState], tightest_s: float = TPOT_S
) -> dict[int, int]:
    steps = LockStep(TABLE, PROFILE.decode, len(ranks))
    found = place(queue, ranks, steps, tightest_s)
    assert len({each.at for each in found}) == len(found)
    return {each.at: each.rank for each in found}


def test_a_request_goes_to_the_rank_that_keeps_the_step_shortest():
    assert placed(waiting(50_000), [rank(90_000), rank(20_000), rank(80_000)]) == {0: 1}


def test_a_request_waits_while_the_step_would_become_too_long():
    full = rank(*[20_000] * 9)
    assert placed(waiting(90_000), [full, full]) == {}
    assert placed(waiting(90_000), [full, rank()]) == {0: 1}


def test_a_short_request_passes_a_long_one_that_does_not_fit():
    ranks = [rank(*[20_000] * 9), rank(*[20_000] * 9)]
    assert set(placed(waiting(90_000, 2_000), ranks)) == {1}


def test_an_aged_request_comes_before_shorter_ones():
    queue = [*waiting(30_000, 30_000), *waiting(40_000, waited_s=2 * AGED_S)]
    full = rank(*[20_000] * 11)
    assert placed(queue, [rank(*[20_000] * 9), full, full]) == {2: 0}


def test_a_rank_is_kept_for_an_aged_request_that_does_not_fit():
    queue = [*waiting(110_000, waited_s=2 * AGED_S), *waiting(2_000)]
    ranks = [rank(*[20_000] * 9), rank(*[20_000] * 8)]
    assert placed(queue, ranks) == {1: 0}
    assert placed([*waiting(110_000), *waiting(2_000)], ranks) == {1: 1}


def test_memory_and_slots_are_limits():
    ranks = [rank(free_tokens=10.0), rank(slots=0), rank(50_000)]
    assert placed(waiting(1_000), ranks) == {0: 2}
    assert placed(waiting(1_000), ranks[:2]) == {}


def test_an_empty_server_takes_a_request_whose_objective_is_out_of_reach():
    assert placed([WaitingRequest(1_000, 1e-6, 0.0)], [rank(), rank()], math.inf) == {0: 0}


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 120_000), max_size=12),
    st.lists(st.lists(st.integers(1, 60_000), max_size=12), min_size=2, max_size=8),
)
def test_no_placement_makes_a_step_longer_than_the_objectives_allow(queue, held):
    ranks = [rank(*contexts) for contexts in held]
    steps = LockStep(TABLE, PROFILE.decode, len(ranks))
    before_s = steps.step_s([each.load for each in ranks])
    found = place(waiting(*queue), ranks, steps, TPOT_S)
    after = [each.load for each in ranks]
    for at, to in found:
        after[to] = with_request(after[to], queue[at])
    # A single request on an empty server joins at any rate.
    if sum(load.batch for load in after) > 1 and found:
        assert steps.step_s(after) <= max(before_s, STEP_SHARE * TPOT_S) + 1e-12


def test_requests_join_a_rank_within_the_bound_or_below_a_slower_rank():
    steps = LockStep(TABLE, PROFILE.decode, 2)
    contexts = [20_000] * 16
    queue = waiting(*contexts)
    beside_idle = joins_within(queue, RankLoad(), steps.table_beside([RankLoad()]), TPOT_S)
    load = RankLoad(len(beside_idle), 20_000.0 * len(beside_idle), 20_000.0)
    assert 0 < len(beside_idle) < 16
    assert steps.step_s([load, RankLoad()]) <= TPOT_S
    slow = RankLoad(30, 400_000.0, 20_000.0)
    assert joins_within(queue, RankLoad(), steps.table_beside([slow]), TPOT_S) == [*range(16)]


def test_an_idle_rank_takes_its_first_request_at_any_rate():
    steps = LockStep(TABLE, PROFILE.decode, 2)
    table = steps.table_beside([RankLoad()])
    assert joins_within(waiting(120_000), RankLoad(), table, 1e-3) == [0]
    assert joins_within([], RankLoad(), table, pytest.approx(1.0)) == []


def test_a_rank_plans_no_step_below_the_objective_and_no_express_step():
    params = lock_step_params(SlackParams(period=4))
    params.check()
    assert params == SlackParams(period=4, min_step_share=1.0, express_tokens=0.0)


def test_no_request_joins_a_rank_past_an_aged_one_that_does_not_fit():
    steps = LockStep(TABLE, PROFILE.decode, 2)
    table = steps.table_beside([RankLoad()])
    load = RankLoad(9, 180_000.0, 20_000.0)
    queue = [*waiting(2_000), *waiting(110_000, waited_s=2 * AGED_S)]
    assert joins_within(queue, load, table, TPOT_S) == []
    assert joins_within(waiting(2_000, 110_000), load, table, TPOT_S) == [0]
