"""The compiled account of a prefill instance against a plain one."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.router.placement.backlog import Backlog, SentPrompt

FLOOR = 0.05
GRACE_S = 0.25
times = st.floats(0.001, 10.0)


@dataclass
class Prompt:
    rank: float
    id: int
    deadline_s: float
    work_s: float
    rest_s: float
    most_s: float
    overdue_s: float = 0.0


def serve(prompts: list[Prompt], passed_s: float, factor: float, in_turn: bool) -> None:
    for one in prompts:
        least_s = FLOOR * one.work_s * factor
        if not one.overdue_s:
            served = min(passed_s, max(one.rest_s - least_s, 0.0))
            one.rest_s -= served
            passed_s -= served
        if passed_s <= 0.0:
            return
        may_be_s = factor * (one.most_s - one.work_s) + GRACE_S
        if in_turn and one.overdue_s <= may_be_s:
            one.overdue_s += passed_s
            one.rest_s = one.overdue_s if one.overdue_s <= may_be_s else least_s
            return


def ahead(
    prompts: list[Prompt], now: float, deadline: float, work: float, by_deadline: bool, slice: float
) -> float:
    total = 0.0
    for at, one in enumerate(prompts):
        in_time = now + one.rest_s <= one.deadline_s
        if in_time:
            first = one.deadline_s <= deadline
        else:
            first = math.isinf(deadline) and one.rest_s <= work
        if first or not by_deadline:
            total += one.rest_s
        elif at == 0:
            total += min(one.rest_s, slice)
    return total


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), times, times, times),
            st.tuples(st.just("remove"), st.integers(0, 100), times, times),
            st.tuples(st.just("scale"), st.floats(0.0, 1.0), times, times),
        ),
        max_size=90,
    ),
    st.floats(0.2, 3.0),
    st.booleans(),
)
def test_it_agrees_with_the_plain_account(events, factor, by_deadline):
    made, plain, now = Backlog(), list[Prompt](), -5.0
    made.advance(now, factor, not by_deadline)
    for id, (what, number, second, passed) in enumerate(events):
        now += passed
        serve(plain, passed, factor, not by_deadline)
        made.advance(now, factor, not by_deadline)
        if what == "add":
            one = Prompt(second, id, now + number, passed, passed * factor, passed + second)
            plain.append(one)
            plain.sort(key=lambda prompt: (prompt.rank, prompt.id))
            prompt = SentPrompt(one.deadline_s, one.work_s, one.most_s, one.rest_s, 10)
            made.add(one.rank, id, prompt)
        elif what == "scale":
            made.scale(number)
            for one in plain:
                one.rest_s *= number
        elif plain:
            gone = plain.pop(number % len(plain))
            assert made.pop(gone.id) == gone.work_s
        assert made.ids == [one.id for one in plain]
        assert made.tokens == 10 * len(plain)
        assert made.rest_s() == pytest.approx(sum(one.rest_s for one in plain))
        for due in (now + 1.0, math.inf):
            expected = ahead(plain, now, due, second, by_deadline, 0.1)
            assert made.ahead_s(now, due, second, by_deadline, 0.1) == pytest.approx(expected)
        kept = [one for one in plain if not by_deadline or now + one.rest_s <= one.deadline_s]
        assert [work for _, work in made.committed_work(now, by_deadline)] == pytest.approx(
            [one.rest_s for one in kept]
        )
        begun = sum(max(one.work_s - one.rest_s / factor, 0.0) for one in plain)
        assert made.begun_s(factor) == pytest.approx(begun)


def test_what_it_does_not_hold_is_not_removed():
    assert Backlog().pop(3) is None


def test_time_does_not_go_back():
    made = Backlog()
    made.advance(10.0, 1.0, True)
    made.add(0.0, 1, SentPrompt(99.0, 1.0, 1.0, 1.0, 5))
    made.advance(9.0, 1.0, True)
    made.advance(10.5, 1.0, True)
    assert made.rest_s() == pytest.approx(0.5)


def test_no_prompt_is_served_before_one_whose_prefix_hit_did_not_come_true():
    made = Backlog()
    made.advance(0.0, 1.0, True)
    made.add(0.0, 1, SentPrompt(99.0, 0.1, 5.0, 0.1, 5))
    made.add(1.0, 2, SentPrompt(99.0, 1.0, 1.0, 1.0, 5))
    made.advance(3.095, 1.0, True)
    assert made.rest_s() == pytest.approx(1.0 + 3.0)  # as long again
    made.remove(1)
    made.advance(3.595, 1.0, True)
    assert made.rest_s() == pytest.approx(0.5)


def test_one_that_waits_for_something_else_blocks_no_other():
    made = Backlog()
    made.advance(0.0, 1.0, True)
    made.add(0.0, 1, SentPrompt(99.0, 0.1, 0.1, 0.1, 5))
    made.add(1.0, 2, SentPrompt(99.0, 1.0, 1.0, 1.0, 5))
    made.advance(0.5, 1.0, True)
    made.advance(1.0, 1.0, True)
    assert made.rest_s() == pytest.approx(0.005 + 0.5)
