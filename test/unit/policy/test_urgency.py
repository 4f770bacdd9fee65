"""Urgency: docs/explanation/urgency.md has the method."""

import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.latency import Chunk, PrefillModel
from kairos.policy.jobs import PrefillJob
from kairos.policy.urgency import UrgencyParams, UrgencyQueue, plan_batch

MODEL = PrefillModel(0.008, 0.016, 1e-5, 1e-9)
LINEAR = PrefillModel(0.0, 0.0, 1e-4, 0.0)
CHUNK = 8_192
EPS = 1e-9


def job(i: int, arrival: float, slo: float, total: int, done: int = 0) -> PrefillJob:
    return PrefillJob(i, arrival, arrival + slo, total, done)


def filled(
    jobs: list[PrefillJob], model: PrefillModel = MODEL, params: UrgencyParams | None = None
) -> UrgencyQueue:
    queue = UrgencyQueue(model, CHUNK, params)
    for one in jobs:
        queue.add(one)
    return queue


jobs_strategy = st.lists(
    st.tuples(st.floats(-20, 0), st.floats(0.01, 30), st.integers(1, 150_000), st.floats(0, 0.99)),
    min_size=1,
    max_size=30,
).map(
    lambda rows: [
        job(i, arrival, slo, total, int(share * total))
        for i, (arrival, slo, total, share) in enumerate(rows)
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9_000), st.floats(0.01, 3.0)), min_size=1, max_size=9))
def test_no_larger_set_than_the_feasible_one_can_meet_its_deadlines(rows):
    jobs = [job(i, 0.0, slo, total) for i, (total, slo) in enumerate(rows)]
    kept = _kept(jobs)
    for size in range(len(jobs), len(kept), -1):
        for chosen in itertools.combinations(jobs, size):
            end, fits = 0.0, True
            for one in sorted(chosen, key=lambda j: j.deadline_s):
                end += LINEAR.remaining_s(0, one.total_tokens, CHUNK)
                fits = fits and end <= one.deadline_s - EPS
            assert not fits


def _kept(jobs: list[PrefillJob]) -> list[int]:
    """Ids that a server working off the queue completes in time, nothing else arriving."""
    params = UrgencyParams(slice_s=1e9, infeasible_slice_s=1e9, starvation_share=0.0, reserve=0.0)
    queue = filled(jobs, LINEAR, params)
    left = {one.id: one for one in jobs}
    now, done = 0.0, []
    while left:
        chunk = queue.plan(now, 10**9).chunks[0]
        one = left.pop(chunk.id)
        assert chunk.tokens == one.total_tokens
        now += LINEAR.batch_s([Chunk(0, chunk.tokens)])
        queue.remove(chunk.id)
        if now <= one.deadline_s + EPS:
            done.append(one.id)
    return done


# Prompts about to be due beside long ones of which a little is left: what is left hides under the
# weight floor, its attention does not.
tight_strategy = st.tuples(
    st.lists(st.tuples(st.floats(0.03, 0.3), st.integers(1, 1_500)), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(0.3, 30.0), st.integers(1, 150_000), st.integers(1, 2_000))),
).map(
    lambda rows: [
        *(job(i, 0.0, slo, total) for i, (slo, total) in enumerate(rows[0])),
        *(job(9 + i, 0.0, slo, done + more, done) for i, (slo, done, more) in enumerate(rows[1])),
    ]
)


@settings(max_examples=300, deadline=None)
@given(jobs_strategy | tight_strategy, st.integers(1, 16_384))
def test_packing_makes_no_completed_prompt_miss_its_deadline(jobs, budget):
    plan = plan_batch(jobs, MODEL, 0.0, budget)
    by_id = {one.id: one for one in jobs}
    for k, chunk in enumerate(plan.chunks):
        one = by_id[chunk.id]
        if chunk.tokens < one.total_tokens - one.done_tokens:
            continue
        until = [Chunk(by_id[c.id].done_tokens, c.tokens) for c in plan.chunks[: k + 1]]
        if MODEL.batch_s(until) <= one.deadline_s - EPS:
            assert plan.batch_s <= one.deadline_s + EPS


def test_tokens_under_the_weight_floor_still_pay_for_their_attention():
    due, long = job(1, 0.0, 0.08, 500), job(2, 0.0, 60.0, 120_000, done=99_500)
    plan = plan_batch([due, long], MODEL, 0.0, CHUNK)
    assert [chunk.id for chunk in plan.chunks] == [1, 2]
    assert plan.batch_s <= 0.08 + EPS


@pytest.mark.parametrize("model", [LINEAR, PrefillModel(0.0, 0.01, 1e-12, 0.0)])
def test_a_model_without_attention_or_nearly_without_work_plans(model):
    jobs = [job(1, 0.0, 0.5, 500), job(2, 0.0, 60.0, 2_000)]
    assert plan_batch(jobs, model, 0.0, CHUNK).chunks == [(1, 500), (2, 2_000)]


@settings(max_examples=150, deadline=None)
@given(jobs_strategy, st.integers(1, 16_384), st.sampled_from([1, 16, 64]))
def test_a_plan_fits_its_budget_and_its_jobs_and_predicts_its_time(jobs, budget, page):
    plan = plan_batch(jobs, MODEL, 0.0, budget, page)
    by_id = {one.id: one for one in jobs}
    assert len({chunk.id for chunk in plan.chunks}) == len(plan.chunks)
    assert sum(chunk.tokens for chunk in plan.chunks) <= budget
    if budget >= max(page, 64):
        assert plan.chunks
    for chunk in plan.chunks:
        remaining = by_id[chunk.id].total_tokens - by_id[chunk.id].done_tokens
        assert 0 < chunk.tokens <= remaining
        assert chunk.tokens == remaining or chunk.tokens % page == 0
    if plan.chunks:
        work = [Chunk(by_id[c.id].done_tokens, c.tokens) for c in plan.chunks]
        assert plan.batch_s == pytest.approx(MODEL.batch_s(work))


@settings(max_examples=60, deadline=None)
@given(jobs_strategy, st.randoms(use_true_random=False), st.integers(-1_000, 1_000))
def test_neither_the_order_of_arrival_nor_the_clock_matters(jobs, random, shift):
    shuffled = list(jobs)
    random.shuffle(shuffled)
    assert plan_batch(jobs, MODEL, 0.0, CHUNK) == plan_batch(shuffled, MODEL, 0.0, CHUNK)
    assert filled(jobs).order(0.0) == filled(shuffled).order(0.0)
    # Powers of two move the clock without rounding.
    exact = [
        PrefillJob(j.id, math.floor(j.arrival_s), math.ceil(j.deadline_s) + 1, j.total_tokens)
        for j in jobs
    ]
    moved = [
        PrefillJob(j.id, j.arrival_s + shift, j.deadline_s + shift, j.total_tokens) for j in exact
    ]
    assert filled(exact).order(0.0) == filled(moved).order(float(shift))


@settings(max_examples=40, deadline=None)
@given(jobs_strategy, st.data())
def test_updates_between_decisions_equal_a_queue_built_anew(jobs, data):
    queue = filled(jobs)
    current = {one.id: one for one in jobs}
    for one in jobs:
        action = data.draw(st.sampled_from(["keep", "remove", "progress"]))
        if action == "remove":
            queue.remove(one.id)
            del current[one.id]
        elif action == "progress":
            done = data.draw(st.integers(one.done_tokens, one.total_tokens - 1))
            queue.progress(one.id, done)
            current[one.id] = PrefillJob(
                one.id, one.arrival_s, one.deadline_s, one.total_tokens, done
            )
    assert len(queue) == len(current)
    anew = filled(list(current.values()))
    anew.shortest_slo_s = queue.shortest_slo_s
    assert queue.order(0.0) == anew.order(0.0)


def test_an_infeasible_job_follows_a_feasible_one():
    late = job(1, -1.0, 1.001, 50_000)
    fine = job(2, 0.0, 5.0, 4_000)
    assert filled([late, fine]).order(0.0) == [2, 1]


def test_an_urgent_arrival_overtakes_a_started_prompt():
    long = job(1, 0.0, 20.0, 100_000, done=40_000)
    short = job(2, 0.0, 0.6, 1_000)
    assert plan_batch([long, short], MODEL, 0.0, CHUNK).chunks[0] == (2, 1_000)


def test_a_batch_is_cut_at_the_slice():
    jobs = [job(1, 0.0, 60.0, 150_000, done=100_000)]
    plan = plan_batch(jobs, MODEL, 0.0, CHUNK, params=UrgencyParams(slice_s=0.1))
    assert 0.09 < plan.batch_s <= 0.1 + EPS


def test_a_heavier_job_is_deferred_last():
    light = PrefillJob(1, 0.0, 0.5, 30_000)
    heavy = PrefillJob(2, 0.0, 0.5, 40_000, weight=10.0)
    alone = PrefillModel(0.0, 0.0, 1e-5, 0.0)
    assert UrgencyQueue(alone, CHUNK).order(0.0) == []
    assert filled([light, heavy], alone).order(0.0) == [2, 1]


def test_a_starved_job_is_served_within_a_bound_under_endless_urgent_work():
    infeasible = job(0, -1_000.0, 1.0, 2_000)
    queue = filled([infeasible], params=UrgencyParams(starvation_share=0.05))
    now, number = 0.0, 0
    while now < 60.0:
        number += 1
        queue.add(job(number, now, 0.5, 4_000))
        plan = queue.plan(now, CHUNK)
        now += plan.batch_s
        for chunk in plan.chunks:
            if chunk.id == 0:
                return
            queue.remove(chunk.id)
    pytest.fail("the infeasible got no chunk in 60 s")


def test_without_a_starvation_share_urgent_work_starves_infeasible_jobs():
    queue = filled([job(0, -1_000.0, 1.0, 2_000)], params=UrgencyParams(starvation_share=0.0))
    for number in range(1, 50):
        queue.add(job(number, 0.1 * number, 0.5, 8_192))
        plan = queue.plan(0.1 * number, CHUNK)
        assert [chunk.id for chunk in plan.chunks] == [number]
        queue.remove(number)


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_equal_huge_and_tiny_inputs_give_finite_plans(count):
    for total, slo in ((1, 1e-6), (10_000_000, 1e6), (4_096, 1.0)):
        jobs = [job(i, 0.0, slo, total) for i in range(count)]
        plan = plan_batch(jobs, MODEL, 0.0, CHUNK)
        assert math.isfinite(plan.batch_s)
        assert bool(plan.chunks) == bool(count)


@pytest.mark.parametrize(
    "bad",
    [
        PrefillJob(1, 0.0, math.nan, 10),
        PrefillJob(1, math.inf, 1.0, 10),
        PrefillJob(1, 0.0, 0.0, 10),
        PrefillJob(1, 1.0, 0.5, 10),
        PrefillJob(1, 0.0, 1.0, 0),
        PrefillJob(1, 0.0, 1.0, 10, 10),
        PrefillJob(1, 0.0, 1.0, 10, -1),
        PrefillJob(1, 0.0, 1.0, 10, weight=0.0),
        PrefillJob(1, 0.0, 1.0, 10, weight=math.nan),
    ],
)
def test_impossible_jobs_are_rejected_by_name(bad):
    with pytest.raises(InputError, match="job 1"):
        filled([bad])


def test_a_job_is_queued_once():
    with pytest.raises(InputError, match="queued already"):
        filled([job(1, 0.0, 1.0, 10), job(1, 0.0, 2.0, 10)])


FIELDS = [
    "slice_s",
    "infeasible_slice_s",
    "post_prefill_s",
    "starvation_share",
    "reserve",
    "reserve_after_s",
]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_parameters_out_of_range_are_rejected(field, value):
    with pytest.raises(InputError, match=field):
        UrgencyParams(**{field: value})


def test_of_two_jobs_that_just_fit_the_larger_is_deferred_for_later_arrivals():
    larger, smaller = job(1, 0.0, 8.0, 50_000), job(2, 0.0, 10.0, 45_000)
    short = job(3, 0.0, 1.0, 100)
    plain = filled([larger, smaller, short], LINEAR, UrgencyParams(reserve=0.0))
    reserving = filled([larger, smaller, short], LINEAR)
    assert plain.order(0.0) == [3, 1, 2]
    assert reserving.order(0.0) == [3, 2, 1]


def test_where_all_slos_are_alike_nothing_is_reserved():
    jobs = [job(1, 0.0, 10.0, 50_000), job(2, 0.0, 10.0, 45_000)]
    assert filled(jobs, LINEAR).order(0.0) == [1, 2]


def test_the_infeasible_job_furthest_beyond_its_slo_is_first():
    short = job(1, -5.0, 1.0, 1_000)
    long = job(2, -9.0, 8.0, 20_000)
    assert filled([long, short], LINEAR).order(0.0) == [1, 2]


def test_chunks_of_one_plan_follow_the_order_of_the_queue():
    """Given-up and late ones come out of heaps; `order` sorts them."""
    kept = PrefillJob(0, 0.0, 1.0, 9_990, weight=1e3)
    dropped = [
        PrefillJob(i, 0.0, 1.0 + 5e-4 * (i % 7), 100 + i % 50, weight=1.0 + i % 3)
        for i in range(1, 200)
    ]
    late = [job(i, -1.0 - 0.01 * (i % 17), 0.1 * (1 + i % 5), 50 + i % 9) for i in range(200, 400)]
    # The kept one is not completed by this batch, so nothing has to be on time.
    params = UrgencyParams(slice_s=0.1, infeasible_slice_s=1e3, starvation_share=0.0, reserve=0.0)
    queue = filled([kept, *dropped, *late], LINEAR, params)
    order = queue.order(0.0)
    assert order[0] == 0
    assert set(order[1:200]) == set(range(1, 200))
    assert [chunk.id for chunk in queue.plan(0.0, 10**6).chunks] == order


def test_a_plan_of_many_short_infeasible_prompts_costs_little_more_than_one_of_a_few():
    """Every chunk passed over all rows: 7 ms for 10,000 prompts, the event loop of an engine."""

    def least_s(count: int) -> float:
        queue = filled([job(i, -100.0 - i * 1e-3, 1.0, 50) for i in range(count)])
        taken = []
        for _ in range(9):
            begin = time.thread_time()
            plan = queue.plan(0.0, CHUNK)
            taken.append(time.thread_time() - begin)
        assert len(plan.chunks) > 100
        return min(taken)

    assert least_s(8_000) < 8 * least_s(400)


def test_starved_jobs_are_served_oldest_first():
    jobs = [job(i, -1_000.0 + (7 * i) % 40, 1.0, 20) for i in range(40)]
    queue = filled(jobs, params=UrgencyParams(starvation_share=1.0))
    queue.plan(0.0, CHUNK)  # earns credit
    chosen = [chunk.id for chunk in queue.plan(0.0, 400).chunks]
    assert chosen == sorted(range(40), key=lambda i: jobs[i].arrival_s)[:20]


@pytest.mark.parametrize("done", [-1, 10, 11])
def test_progress_beyond_the_prompt_is_rejected(done):
    queue = filled([job(1, 0.0, 1.0, 10)])
    with pytest.raises(InputError, match="job 1"):
        queue.progress(1, done)
    assert queue.job(1) == (1.0, 10, 0)


@pytest.mark.parametrize("start", [math.nan, math.inf, -math.inf])
def test_a_batch_starts_at_a_finite_time(start):
    queue = filled([job(1, 0.0, 1.0, 10)])
    with pytest.raises(InputError, match="finite"):
        queue.plan(start, CHUNK)


def test_a_preview_charges_nothing_until_it_is_committed():
    params = UrgencyParams(starvation_share=1.0)
    queue = filled([job(1, -1_000.0, 1.0, 50)], params=params)
    queue.plan(0.0, CHUNK)
    plans = [queue.preview(0.0, CHUNK) for _ in range(3)]
    assert plans[0] == plans[1] == plans[2]
    assert queue.grants == 0
    queue.commit()
    assert queue.grants == 1


def test_of_equal_jobs_that_with_the_latest_deadline_is_deferred():
    """It can be taken back if predictions were too long; the earliest, given up, is lost."""
    equal = [job(i, -0.1 * i, 1.5 + 0.2 * i, 10_000) for i in range(4)]  # a second each, one fits
    assert filled(equal, LINEAR).order(0.0)[0] == min(equal, key=lambda j: j.deadline_s).id


def test_pages_longer_than_the_least_chunk_leave_no_plan_empty():
    queue = filled([job(1, 0.0, 1.0, 600_000, 590_000)])
    assert [chunk.tokens for chunk in queue.plan(100.0, 8192, 512).chunks] == [512]
