import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.policy.admission import (
    AdmissionDecision,
    AdmissionForecast,
    AdmissionParams,
    InstanceLoad,
    forecast,
)
from kairos.policy.jobs import PrefillJob

PROFILE = load_profile("minimax-m2.5-tp4-h200")
IDLE = InstanceLoad([], 0, 0, 1_000_000)
FULL = InstanceLoad([], 80, 990_000, 1_000_000)


def ask(
    queue: list[PrefillJob],
    load: InstanceLoad = IDLE,
    tpot_s: float = 0.03,
    now_s: float = 0.0,
) -> AdmissionForecast:
    job = PrefillJob(10**6, now_s, now_s + 1.0, 8_000)
    return forecast(job, tpot_s, load._replace(queue=queue), now_s, PROFILE, AdmissionParams())


def backlog(jobs: int) -> list[PrefillJob]:
    return [PrefillJob(i, 0.0, 0.9, 8_000) for i in range(jobs)]


def test_an_idle_server_admits():
    seen = ask([])
    assert seen.decision is AdmissionDecision.ADMIT
    assert seen.ttft_attainment > 0.99
    assert seen.retry_after_s == 0.0


def test_a_backlog_that_is_due_earlier_delays_a_request():
    seen = ask(backlog(12))
    assert seen.decision is AdmissionDecision.DEGRADE
    assert seen.ttft_s > ask([]).ttft_s
    assert seen.ttft_attainment < 0.5


def test_later_and_infeasible_work_does_not_delay_a_request():
    later = [PrefillJob(i, 0.0, 100.0, 8_000) for i in range(50)]
    lost = [PrefillJob(i, -9.0, 0.01, 8_000) for i in range(50, 100)]
    assert ask(later + lost).ttft_s == ask([]).ttft_s


def test_two_infeasible_objectives_are_rejected_with_the_time_to_wait():
    seen = ask(backlog(12), FULL)
    assert seen.decision is AdmissionDecision.REJECT
    assert seen.retry_after_s == pytest.approx(seen.ttft_s - 1.0)


def test_a_flood_is_not_admitted_even_with_decode_idle():
    assert ask(backlog(100)).decision in (AdmissionDecision.DEGRADE, AdmissionDecision.REJECT)
    long = [PrefillJob(i, 0.0, 50.0 - 49.5 * (i == 0), 8_000) for i in range(2)]
    assert ask(long).decision is AdmissionDecision.ADMIT


def test_full_memory_degrades():
    assert ask([], FULL).decision is AdmissionDecision.DEGRADE


@pytest.mark.parametrize("tpot_s", [0.0, -1.0, math.nan])
def test_a_bad_objective_is_rejected(tpot_s):
    with pytest.raises(InputError, match="TPOT"):
        ask([], tpot_s=tpot_s)


queues = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 40), st.integers(1, 60_000)), max_size=20
).map(
    lambda rows: [
        PrefillJob(i, -float(age), slo - float(age), total)
        for i, (age, slo, total) in enumerate(rows)
    ]
)


@settings(max_examples=60, deadline=None)
@given(queues, st.randoms(use_true_random=False), st.integers(-1_000, 1_000))
def test_neither_the_order_of_the_queue_nor_the_clock_matters(queue, random, shift):
    seen = ask(queue)
    shuffled = list(queue)
    random.shuffle(shuffled)
    again = ask(shuffled)
    moved = [
        replace(job, arrival_s=job.arrival_s + shift, deadline_s=job.deadline_s + shift)
        for job in queue
    ]
    later = ask(moved, now_s=float(shift))
    for other in (again, later):
        assert other.decision is seen.decision
        assert other.ttft_s == pytest.approx(seen.ttft_s)
        assert other.ttft_attainment == pytest.approx(seen.ttft_attainment, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 2.0), st.integers(1, 400)), max_size=10))
def test_more_work_ahead_never_helps_while_all_jobs_are_feasible(rows):
    queue = [PrefillJob(i, 0.0, due, total) for i, (due, total) in enumerate(rows)]
    ahead = PrefillJob(10**7, -0.5, 0.5, 5_000)
    assert ask([*queue, ahead]).ttft_s > ask(queue).ttft_s
    assert ask([*queue, ahead]).ttft_attainment <= ask(queue).ttft_attainment


def test_a_small_prompt_bypasses_a_backlog_that_is_mostly_infeasible():
    """The whole backlog counted, as each of its prompts could be on time if it were alone."""
    small = PrefillJob(10**6, 0.0, 1.0, 500)
    load = IDLE._replace(queue=backlog(100))
    seen = forecast(small, 0.03, load, 0.0, PROFILE, AdmissionParams())
    assert seen.decision is AdmissionDecision.ADMIT
    assert ask([]).ttft_s / 4 < seen.ttft_s < 1.0


def test_a_deferred_prompt_waits_for_all_feasible_ones():
    kept = [PrefillJob(i, 0.0, 0.3 + 0.2 * i, 6_000) for i in range(8)]
    job = PrefillJob(10**6, 0.0, 1.0, 60_000)
    assert ask(kept).decision is AdmissionDecision.ADMIT
    work_s = PROFILE.prefill.remaining_s(0, 6_000, 8_192)
    alone, behind = (
        forecast(job, 0.03, IDLE._replace(queue=queue), 0.0, PROFILE, AdmissionParams()).ttft_s
        for queue in ([], kept)
    )
    assert behind == pytest.approx(alone + 8 * work_s)


@pytest.mark.parametrize("total", [1, 10_000_000])
@pytest.mark.parametrize("slo", [1e-6, 1e6])
def test_extremes_stay_finite(total, slo):
    job = PrefillJob(1, 0.0, slo, total)
    seen = forecast(job, 1e-6, FULL, 0.0, PROFILE, AdmissionParams())
    figures = (seen.ttft_s, seen.tpot_s, seen.ttft_attainment, seen.retry_after_s)
    assert all(math.isfinite(figure) and figure >= 0.0 for figure in figures)
