"""Instances that cannot be overtaken in: short prompts keep one that no long prompt blocks."""

import pytest

from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.history import Arrivals
from support.dispatching import dispatcher, ids, work

LONG = 100_000
GAP_S = 0.1


def long(id: int, arrival_s: float):
    return work(id, arrival_s, LONG, ttft_ms=20_000.0)


def with_short_ones(made: Dispatcher, count: int = 50) -> float:
    """Short prompts that come and go; the time after the last."""
    for i in range(count):
        now_s = i * GAP_S
        made.offer(work(1_000 + i, now_s, 500, ttft_ms=600.0), now_s)
        assert ids(made.dispatch(now_s)) == [1_000 + i]
        made.finished(1_000 + i, now_s + 0.05, 1)
    return count * GAP_S


def test_a_second_long_prompt_waits_and_short_ones_pass_it() -> None:
    made = dispatcher(2)
    now_s = with_short_ones(made)
    made.offer(long(1, now_s), now_s)
    made.offer(long(2, now_s), now_s)
    (first,) = made.dispatch(now_s)
    made.offer(work(3, now_s, 500, ttft_ms=600.0), now_s)
    (short,) = made.dispatch(now_s)
    assert short.id == 3
    assert short.prefill != first.prefill
    made.finished(3, now_s + 0.05, 1)
    made.finished(first.id, now_s + 6.0, 1)
    assert len(made.dispatch(now_s + 6.0)) == 1


def test_both_run_at_once_where_no_short_ones_come() -> None:
    made = dispatcher(2)
    for id in (1, 2):
        made.offer(long(id, 0.0), 0.0)
    assert len(made.dispatch(0.0)) == 2


def test_short_ones_that_no_longer_come_are_forgotten() -> None:
    made = dispatcher(2)
    now_s = with_short_ones(made) + 600.0
    for id in (1, 2):
        made.offer(long(id, now_s), now_s)
    assert len(made.dispatch(now_s)) == 2


def test_the_only_instance_takes_everything() -> None:
    made = dispatcher(1)
    now_s = with_short_ones(made)
    made.offer(long(1, now_s), now_s)
    assert ids(made.dispatch(now_s)) == [1]


def test_engines_that_let_urgent_prompts_pass_are_not_kept_clear() -> None:
    made = dispatcher(2, preemptive=True)
    now_s = with_short_ones(made)
    for id in (1, 2):
        made.offer(long(id, now_s), now_s)
    assert len(made.dispatch(now_s)) == 2


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_long_prompt_that_starves_gets_its_turn(share: float) -> None:
    made = dispatcher(2, starve_share=share, starve_after=1.0)
    now_s = with_short_ones(made)
    made.offer(long(1, now_s), now_s)
    assert ids(made.dispatch(now_s)) == [1]  # for some seconds
    made.offer(work(2, now_s, LONG, ttft_ms=2_000.0), now_s)
    sent = []
    for step in range(30):
        at_s = now_s + GAP_S * step
        made.offer(work(2_000 + step, at_s, 500, ttft_ms=600.0), at_s)
        sent += ids(made.dispatch(at_s))
        made.finished(2_000 + step, at_s + 0.05, 1)
    assert (2 in sent) == (share > 0.0)


def test_what_would_be_missed_grows_with_the_time_blocked() -> None:
    seen = Arrivals()
    for i in range(40):
        seen.add(0.5, 0.1 * i)
    assert seen.expected_misses(0.5, 4.0) == 0.0
    assert seen.expected_misses(1.5, 4.0) == 10.0  # of ten a second, those of the first second
    assert seen.expected_misses(1.5, 8.0) == 5.0


def test_a_few_arrivals_prove_nothing() -> None:
    seen = Arrivals()
    for i in range(7):
        seen.add(0.0, 0.1 * i)
    assert seen.expected_misses(100.0, 1.0) == 0.0
