"""Memory for prompts before their prefill, by numbered behaviours."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.policy.growth import peak_tokens
from kairos.policy.preallocation import (
    DecodeMemory,
    Preallocation,
    PreallocationParams,
    PreallocationRequest,
    is_infeasible,
    shortest_prefill_s,
)

NO_RESIDENTS = np.empty(0)


def room(free: float, capacity: float = 10_000, late_pending: Sequence[int] = ()) -> DecodeMemory:
    late = [request(-at, tokens, -math.inf) for at, tokens in enumerate(late_pending, 1)]
    return DecodeMemory(capacity, free, 10.0, late, NO_RESIDENTS, NO_RESIDENTS)


def request(
    i: int, tokens: int, deadline_s: float | None = None, requested_s: float = 0.0
) -> PreallocationRequest:
    return PreallocationRequest(
        i, tokens, requested_s, requested_s + 10.0 if deadline_s is None else deadline_s, 0.1
    )


def working(i: int, tokens: int, min_prefill_s: float, server: str = "a") -> PreallocationRequest:
    return request(i, tokens)._replace(min_prefill_s=min_prefill_s, prefill_server=server)


def granted(
    prompts: list[PreallocationRequest], where: DecodeMemory, now_s: float = 1.0
) -> list[int]:
    return [prompts[grant.at].id for grant in Preallocation().grant(prompts, where, now_s)]


def test_a_prompt_that_does_not_fit_blocks_no_other() -> None:
    assert granted([request(1, 5_000), request(2, 900), request(3, 900)], room(2_000)) == [2, 3]


def test_short_prompts_are_served_first() -> None:
    assert granted([request(1, 900), request(2, 500), request(3, 700)], room(1_300)) == [2, 3]


def test_infeasible_prompts_are_served_last() -> None:
    prompts = [request(1, 100, deadline_s=0.5), request(2, 900), request(3, 900)]
    assert granted(prompts, room(10_000)) == [2, 3, 1]


def test_infeasible_prompts_leave_memory_for_later_arrivals() -> None:
    late = [request(i, 400, deadline_s=0.5) for i in range(5)]
    assert granted(late, room(3_900)) == []
    assert granted(late, room(9_000)) == [0, 1]
    assert granted(late, room(9_000, late_pending=[400])) == [0]
    assert granted(late, room(9_000, late_pending=[900])) == []


def test_an_infeasible_prompt_of_any_length_gets_an_empty_server() -> None:
    assert granted([request(1, 9_000, deadline_s=0.5)], room(10_000)) == [1]


def test_without_a_free_row_no_memory_is_granted_and_no_credit_earned() -> None:
    """Elders were credited in every pass in which upstream had no row left for anybody."""
    policy = Preallocation(PreallocationParams(aged_s=30.0, aged_credit_share=0.5))
    full = room(9_000)._replace(slots=0)
    aged = request(1, 9_500, deadline_s=5.0)
    for at in range(40):
        assert policy.grant([aged, request(2, 900)], full, float(at)) == []
    assert [g.at for g in policy.grant([aged, request(2, 900)], room(9_000), 41.0)] == [1]
    few = room(9_000)._replace(slots=1)
    assert [g.at for g in policy.grant([request(1, 900), request(2, 500)], few, 0.0)] == [1]


def test_a_prompt_that_requires_more_free_memory_than_there_is_blocks_no_other() -> None:
    greedy = request(1, 500)._replace(required_free_tokens=4_500.0)
    assert granted([greedy, request(2, 900)], room(2_000)) == [2]


def test_an_aged_prompt_is_served_first() -> None:
    policy = Preallocation(PreallocationParams(aged_s=30.0, aged_credit_share=0.5))
    aged = request(1, 3_000, deadline_s=5.0)
    for at in range(4):  # while others are served it earns its place
        short = request(10 + at, 2_000, requested_s=float(at))
        assert [grant.at for grant in policy.grant([aged, short], room(2_500), float(at))] == [1]
    other = request(20, 800, requested_s=39.0)
    assert policy.grant([aged, other], room(2_500), 40.0) == []
    assert [grant.at for grant in policy.grant([aged, other], room(3_900), 41.0)] == [0, 1]


@pytest.mark.parametrize(
    ("objective_s", "aged_after_s"), [(0.5, 6.0), (2.0, 12.0), (10.0, 30.0), (math.inf, 30.0)]
)
def test_a_prompt_ages_by_its_own_objective(objective_s: float, aged_after_s: float) -> None:
    policy = Preallocation()
    policy.grant([request(9, 9_000)], room(10_000), 0.0)  # earns credit
    late = request(1, 2_000, deadline_s=objective_s)
    fresh = request(2, 1_500, requested_s=aged_after_s - 2.0)

    def served(now_s: float) -> list[int]:  # there is room for one of them
        return [grant.at for grant in policy.grant([late, fresh], room(2_500), now_s)]

    assert served(aged_after_s - 0.01) == [1]
    assert served(aged_after_s + 0.01) == [0]


def test_short_prompts_bypass_an_aged_one_until_they_have_taken_as_much_memory() -> None:
    policy = Preallocation(PreallocationParams(aged_s=30.0, aged_credit_share=0.5))
    policy.grant([request(9, 9_000, requested_s=0.0)], room(10_000), 0.0)  # earns credit
    aged = request(1, 3_000, deadline_s=5.0)

    def passing(aged: PreallocationRequest, now_s: float, tokens: int = 750) -> list[int]:
        short = [request(10 + i, tokens, requested_s=now_s) for i in range(3)]
        return [grant.at - 1 for grant in policy.grant([aged, *short], room(2_500), now_s)]

    assert passing(aged, 40.0, tokens=751) == []
    assert passing(aged, 41.0) == [0, 1, 2]
    assert passing(aged, 42.0) == [0]
    assert passing(aged, 43.0) == []
    # The next one is waited for anew.
    assert passing(request(2, 4_000, deadline_s=5.0), 44.0) == [0, 1, 2]
    assert [grant.at for grant in policy.grant([aged], room(3_100), 45.0)] == [0]


def test_a_backlog_of_infeasible_prompts_does_not_push_out_feasible_ones() -> None:
    policy = Preallocation()
    late = [request(i, 500, deadline_s=1.0) for i in range(50)]
    for step in range(200):
        now = 100.0 + step
        short = request(1_000 + step, 500, deadline_s=now + 5, requested_s=now)
        grants = policy.grant([*late, short], room(2_000), now)
        assert sum(grant.at < 50 for grant in grants) <= 1
    served = sum(
        any(
            grant.at < 50
            for grant in policy.grant(
                [*late, request(9_999, 500, 1e9, 400.0)], room(600), 400.0 + i
            )
        )
        for i in range(100)
    )
    assert served <= 10


def test_predicted_growth_is_kept_free() -> None:
    contexts, remaining = np.full(10, 500.0), np.full(10, 450.0)
    full = DecodeMemory(10_000.0, 5_000.0, 10.0, (), contexts, remaining)
    newcomer = request(1, 500)._replace(expected_output_tokens=450.0)
    assert Preallocation().grant([newcomer], full, 1.0) == []
    brief = request(1, 200)._replace(expected_output_tokens=5.0)
    assert len(Preallocation().grant([brief], full, 1.0)) == 1


@given(st.lists(st.tuples(st.integers(1, 1_000), st.integers(0, 300)), min_size=1, max_size=12))
def test_the_peak_is_that_of_a_simulation(residents) -> None:
    contexts = np.array([float(c) for c, _ in residents])
    remaining = np.array([float(r) for _, r in residents])
    simulated = max(
        sum(c + step for c, r in residents if r >= step) for step in range(int(remaining.max()) + 1)
    )
    assert peak_tokens(contexts, remaining) == pytest.approx(simulated)


prompts = st.lists(
    st.tuples(st.integers(1, 6_000), st.floats(0, 100), st.floats(0, 50)), min_size=1, max_size=30
)


@settings(deadline=None)
@given(prompts, st.floats(0, 10_000))
def test_grants_never_exceed_the_free_memory(rows, free) -> None:
    asked = [
        request(i, tokens, deadline, since) for i, (tokens, deadline, since) in enumerate(rows)
    ]
    grants = Preallocation().grant(asked, room(free), 50.0)
    assert len({grant.at for grant in grants}) == len(grants)
    assert sum(asked[grant.at].tokens + 10.0 for grant in grants) <= free


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6_000), st.integers(0, 100), st.integers(0, 50)), min_size=1),
    st.integers(0, 10_000),
    st.randoms(use_true_random=False),
    st.integers(-100_000, 100_000),
)
def test_neither_the_order_of_requests_nor_the_clock_matters(rows, free, random, shift):
    asked = [
        request(i, tokens, deadline, since) for i, (tokens, deadline, since) in enumerate(rows)
    ]
    shuffled = list(asked)
    random.shuffle(shuffled)
    moved = [
        a._replace(deadline_s=a.deadline_s + shift, requested_s=a.requested_s + shift)
        for a in asked
    ]
    here = granted(asked, room(float(free)), 50.0)
    assert granted(shuffled, room(float(free)), 50.0) == here
    assert granted(moved, room(float(free)), 50.0 + shift) == here


@pytest.mark.parametrize("tokens", [1, 10**9])
@pytest.mark.parametrize("deadline_s", [-1e9, 1e9])
def test_extreme_prompts_do_not_affect_others(tokens, deadline_s):
    fine = request(2, 900)
    assert 2 in granted([request(1, tokens, deadline_s), fine], room(2_000))
    assert granted([], room(2_000)) == []
    assert granted([fine], room(-5.0)) == []


@pytest.mark.parametrize("field", PreallocationParams._fields)
@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_parameters_out_of_range_are_rejected(field, value):
    with pytest.raises(InputError, match=field):
        Preallocation(PreallocationParams()._replace(**{field: value}))


def test_a_prompt_behind_enough_shorter_work_gets_no_memory_yet() -> None:
    busy = [working(8, 300, 1.0), working(9, 400, 1.5)]
    there = room(9_000)._replace(pending=busy)
    assert granted([working(1, 400, 1.0), working(2, 401, 1.0)], there) == [1]
    assert granted([working(1, 401, 1.0), working(2, 402, 1.0, "b")], there) == [2]
    # What is granted in the same pass counts, too.
    assert granted([working(i, 100 * i, 1.5) for i in (1, 2, 3)], room(9_000)) == [1, 2]
    late = [prompt._replace(deadline_s=0.0) for prompt in busy]
    assert granted([working(2, 401, 1.0)], room(9_000)._replace(pending=late)) == []


rows = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 8), st.sampled_from("ab")), min_size=1, max_size=12
)


@settings(deadline=None)
@given(rows, rows, st.randoms(use_true_random=False))
def test_shorter_work_equals_the_sum_over_shorter_prompts(asks, holds, random):
    asked = [working(i, 100 * n, w / 4, s) for i, (n, w, s) in enumerate(asks)]
    pending = [working(99 + i, 100 * n, w / 4, s) for i, (n, w, s) in enumerate(holds)]
    expected: list[PreallocationRequest] = []
    for prompt in sorted(asked, key=lambda a: (a.tokens, a.id)):
        shorter = [a for a in pending if a.tokens < prompt.tokens] + expected
        if (
            sum(a.min_prefill_s for a in shorter if a.prefill_server == prompt.prefill_server)
            <= 2.0
        ):
            expected.append(prompt)
    random.shuffle(pending)
    there = room(1e6, 1e6)._replace(pending=pending)
    assert granted(asked, there) == [prompt.id for prompt in expected]


def test_no_memory_is_reserved_for_an_aged_prompt_that_cannot_fit() -> None:
    policy = Preallocation()
    policy.grant([request(9, 9_000)], room(10_000), 0.0)  # earns credit
    huge, small = request(1, 9_995), request(2, 500, requested_s=990.0, deadline_s=2_000.0)
    assert [grant.at for grant in policy.grant([huge, small], room(10_000), 1_000.0)] == [1]


def test_a_prompt_near_the_engine_timeout_needs_no_credit() -> None:
    late, short = request(1, 3_000, deadline_s=5.0), request(2, 500, requested_s=95.0)
    for params, expected in (
        (PreallocationParams(), [1]),
        (PreallocationParams(engine_timeout_s=90.0), [0]),
    ):
        grants = Preallocation(params).grant([late, short], room(3_200), 100.0)
        assert [grant.at for grant in grants] == expected
    crowd = room(3_200, late_pending=[600, 500])
    policy = Preallocation(PreallocationParams(engine_timeout_s=90.0))
    assert [grant.at for grant in policy.grant([late, short], crowd, 100.0)] == [1]


@given(st.floats(0.0, 1e3), st.floats(1e-3, 1e6))
def test_a_prompt_that_has_not_waited_is_feasible(whole_s, objective_s):
    """A prompt whose prefix was cached counted as late from the start, if half of its whole prefill
    was longer than its objective."""
    min_prefill_s = shortest_prefill_s(whole_s, objective_s)
    assert 0.0 <= min_prefill_s <= 0.5 * whole_s
    assert not is_infeasible(PreallocationRequest(1, 100, 0.0, objective_s, min_prefill_s), 0.0)
    assert is_infeasible(
        PreallocationRequest(1, 100, 0.0, objective_s, min_prefill_s), 1.001 * objective_s
    )


def test_a_prompt_with_a_loose_deadline_leaves_memory_for_an_urgent_one() -> None:
    # A prefill takes 0.1 s: at 1.0 the first one has just more than 10 s to spare.
    patient, urgent = request(1, 900, deadline_s=11.2), request(2, 950, deadline_s=11.0)
    assert granted([patient, urgent], room(3_500)) == [2]
    assert granted([patient, urgent], room(3_500), now_s=1.2) == [1, 2]
    assert granted([patient, urgent], room(5_000)) == [1, 2]
    assert granted([patient._replace(tokens=9_000)], room(10_000)) == [1]
    streaming = patient._replace(deadline_s=math.inf)
    assert granted([streaming], room(3_500)) == [1]
