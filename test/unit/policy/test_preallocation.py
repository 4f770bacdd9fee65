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

NOBODY = np.empty(0)


def room(free: float, capacity: float = 10_000, late_pending: Sequence[int] = ()) -> DecodeMemory:
    late = [asking(-at, tokens, -math.inf) for at, tokens in enumerate(late_pending, 1)]
    return DecodeMemory(capacity, free, 10.0, late, NOBODY, NOBODY)


def asking(
    i: int, tokens: int, deadline_s: float | None = None, requested_s: float = 0.0
) -> PreallocationRequest:
    return PreallocationRequest(
        i, tokens, requested_s, requested_s + 10.0 if deadline_s is None else deadline_s, 0.1
    )


def working(i: int, tokens: int, min_prefill_s: float, server: str = "a") -> PreallocationRequest:
    return asking(i, tokens)._replace(min_prefill_s=min_prefill_s, prefill_server=server)


def granted(
    prompts: list[PreallocationRequest], where: DecodeMemory, now_s: float = 1.0
) -> list[int]:
    return [prompts[grant.at].id for grant in Preallocation().grant(prompts, where, now_s)]


def test_1_one_that_does_not_fit_blocks_nobody() -> None:
    assert granted([asking(1, 5_000), asking(2, 900), asking(3, 900)], room(2_000)) == [2, 3]


def test_2_short_ones_go_first() -> None:
    assert granted([asking(1, 900), asking(2, 500), asking(3, 700)], room(1_300)) == [2, 3]


def test_3_late_ones_come_last() -> None:
    prompts = [asking(1, 100, deadline_s=0.5), asking(2, 900), asking(3, 900)]
    assert granted(prompts, room(10_000)) == [2, 3, 1]


def test_4_late_ones_leave_room_for_those_to_come() -> None:
    late = [asking(i, 400, deadline_s=0.5) for i in range(5)]
    assert granted(late, room(3_900)) == []
    assert granted(late, room(9_000)) == [0, 1]
    assert granted(late, room(9_000, late_pending=[400])) == [0]
    assert granted(late, room(9_000, late_pending=[900])) == []


def test_5_a_late_one_gets_an_empty_server_however_long_it_is() -> None:
    assert granted([asking(1, 9_000, deadline_s=0.5)], room(10_000)) == [1]


def test_5_nobody_gets_memory_without_a_row_and_nobody_earns_credit_for_it() -> None:
    """Elders were credited in every pass in which upstream had no row left for anybody."""
    policy = Preallocation(PreallocationParams(aged_s=30.0, aged_credit_share=0.5))
    full = room(9_000)._replace(slots=0)
    elder = asking(1, 9_500, deadline_s=5.0)
    for at in range(40):
        assert policy.grant([elder, asking(2, 900)], full, float(at)) == []
    assert [g.at for g in policy.grant([elder, asking(2, 900)], room(9_000), 41.0)] == [1]
    few = room(9_000)._replace(slots=1)
    assert [g.at for g in policy.grant([asking(1, 900), asking(2, 500)], few, 0.0)] == [1]


def test_5_one_for_whom_the_engine_wants_more_room_than_there_is_blocks_nobody() -> None:
    greedy = asking(1, 500)._replace(required_free_tokens=4_500.0)
    assert granted([greedy, asking(2, 900)], room(2_000)) == [2]


def test_6_who_has_asked_too_long_goes_before_everybody() -> None:
    policy = Preallocation(PreallocationParams(aged_s=30.0, aged_credit_share=0.5))
    elder = asking(1, 3_000, deadline_s=5.0)
    for at in range(4):  # while others are served it earns its place
        short = asking(10 + at, 2_000, requested_s=float(at))
        assert [grant.at for grant in policy.grant([elder, short], room(2_500), float(at))] == [1]
    other = asking(20, 800, requested_s=39.0)
    assert policy.grant([elder, other], room(2_500), 40.0) == []
    assert [grant.at for grant in policy.grant([elder, other], room(3_900), 41.0)] == [0, 1]


def test_6_short_ones_pass_an_elder_that_does_not_fit_until_they_have_taken_what_it_needs() -> None:
    policy = Preallocation(PreallocationParams(aged_s=30.0, aged_credit_share=0.5))
    policy.grant([asking(9, 9_000, requested_s=0.0)], room(10_000), 0.0)  # earns credit
    elder = asking(1, 3_000, deadline_s=5.0)

    def passing(elder: PreallocationRequest, now_s: float, tokens: int = 750) -> list[int]:
        short = [asking(10 + i, tokens, requested_s=now_s) for i in range(3)]
        return [grant.at - 1 for grant in policy.grant([elder, *short], room(2_500), now_s)]

    assert passing(elder, 40.0, tokens=751) == []
    assert passing(elder, 41.0) == [0, 1, 2]
    assert passing(elder, 42.0) == [0]
    assert passing(elder, 43.0) == []
    # The next one is waited for anew.
    assert passing(asking(2, 4_000, deadline_s=5.0), 44.0) == [0, 1, 2]
    assert [grant.at for grant in policy.grant([elder], room(3_100), 45.0)] == [0]


def test_7_a_backlog_of_late_ones_does_not_push_out_who_is_on_time() -> None:
    policy = Preallocation()
    late = [asking(i, 500, deadline_s=1.0) for i in range(50)]
    for step in range(200):
        now = 100.0 + step
        short = asking(1_000 + step, 500, deadline_s=now + 5, requested_s=now)
        grants = policy.grant([*late, short], room(2_000), now)
        assert sum(grant.at < 50 for grant in grants) <= 1
    served = sum(
        any(
            grant.at < 50
            for grant in policy.grant([*late, asking(9_999, 500, 1e9, 400.0)], room(600), 400.0 + i)
        )
        for i in range(100)
    )
    assert served <= 10


def test_8_predicted_growth_is_kept_free() -> None:
    contexts, remaining = np.full(10, 500.0), np.full(10, 450.0)
    full = DecodeMemory(10_000.0, 5_000.0, 10.0, (), contexts, remaining)
    newcomer = asking(1, 500)._replace(expected_output_tokens=450.0)
    assert Preallocation().grant([newcomer], full, 1.0) == []
    brief = asking(1, 200)._replace(expected_output_tokens=5.0)
    assert len(Preallocation().grant([brief], full, 1.0)) == 1


@given(st.lists(st.tuples(st.integers(1, 1_000), st.integers(0, 300)), min_size=1, max_size=12))
def test_9_the_peak_is_that_of_a_simulation(residents) -> None:
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
def test_10_no_more_is_granted_than_there_is(rows, free) -> None:
    asked = [asking(i, tokens, deadline, since) for i, (tokens, deadline, since) in enumerate(rows)]
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
def test_11_neither_the_order_of_asking_nor_the_clock_matters(rows, free, random, shift):
    asked = [asking(i, tokens, deadline, since) for i, (tokens, deadline, since) in enumerate(rows)]
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
def test_12_extremes_are_granted_or_not_and_harm_nobody(tokens, deadline_s):
    fine = asking(2, 900)
    assert 2 in granted([asking(1, tokens, deadline_s), fine], room(2_000))
    assert granted([], room(2_000)) == []
    assert granted([fine], room(-5.0)) == []


@pytest.mark.parametrize("field", PreallocationParams._fields)
@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_13_parameters_out_of_range_are_rejected(field, value):
    with pytest.raises(InputError, match=field):
        Preallocation(PreallocationParams()._replace(**{field: value}))


def test_14_who_waits_behind_enough_shorter_ones_gets_no_memory_yet() -> None:
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
def test_14_as_by_counting_them_one_by_one(asks, holds, random):
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


def test_15_an_elder_that_no_server_could_hold_is_not_waited_for() -> None:
    policy = Preallocation()
    policy.grant([asking(9, 9_000)], room(10_000), 0.0)  # earns credit
    huge, small = asking(1, 9_995), asking(2, 500, requested_s=990.0, deadline_s=2_000.0)
    assert [grant.at for grant in policy.grant([huge, small], room(10_000), 1_000.0)] == [1]


def test_16_who_would_soon_be_lost_needs_no_credit() -> None:
    late, short = asking(1, 3_000, deadline_s=5.0), asking(2, 500, requested_s=95.0)
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
def test_17_nobody_is_late_before_it_has_waited(whole_s, objective_s):
    """A prompt whose prefix was cached counted as late from the start, if half of its whole prefill
    was longer than its objective."""
    min_prefill_s = shortest_prefill_s(whole_s, objective_s)
    assert 0.0 <= min_prefill_s <= 0.5 * whole_s
    assert not is_infeasible(PreallocationRequest(1, 100, 0.0, objective_s, min_prefill_s), 0.0)
    assert is_infeasible(
        PreallocationRequest(1, 100, 0.0, objective_s, min_prefill_s), 1.001 * objective_s
    )


def test_18_who_has_time_leaves_room_for_who_has_not() -> None:
    # A prefill takes 0.1 s: at 1.0 the first one has just more than 10 s to spare.
    patient, urgent = asking(1, 900, deadline_s=11.2), asking(2, 950, deadline_s=11.0)
    assert granted([patient, urgent], room(3_500)) == [2]
    assert granted([patient, urgent], room(3_500), now_s=1.2) == [1, 2]
    assert granted([patient, urgent], room(5_000)) == [1, 2]
    assert granted([patient._replace(tokens=9_000)], room(10_000)) == [1]
    streaming = patient._replace(deadline_s=math.inf)
    assert granted([streaming], room(3_500)) == [1]
