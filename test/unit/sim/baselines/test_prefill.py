import math
from dataclasses import replace

import pytest

from kairos.errors import InputError
from kairos.latency import PrefillModel
from kairos.policy.jobs import PrefillJob
from kairos.sim.baselines.prefill import BASELINES, RankedQueue

MODEL = PrefillModel(0.008, 0.016, 1e-5, 1e-9)


def first(name: str, jobs: list[PrefillJob], started: dict[int, int] | None = None) -> int:
    queue = RankedQueue(MODEL, 8_192, name)
    for job in jobs:
        queue.add(job)
    for job_id, done in (started or {}).items():
        queue.progress(job_id, done)
    return queue.plan(1.0, 8_192).chunks[0].id


OLD_LONG = PrefillJob(1, 0.0, 30.0, 60_000)
NEW_SHORT = PrefillJob(2, 0.9, 2.0, 500)
CACHED = PrefillJob(3, 0.5, 9.0, 20_000, done_tokens=15_000)
INFEASIBLE = PrefillJob(4, 0.0, 1.001, 30_000)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fcfs", 1),
        ("lpm", 3),
        ("spf", 2),
        ("sjf", 2),
        ("sjf-np", 2),
        ("edf", 4),
        ("llf", 4),
        ("ff-edf", 2),
        ("hrrn", 2),
        ("hrrn-np", 1),
    ],
)
def test_each_baseline_serves_its_own_first_prompt(name, expected):
    assert first(name, [OLD_LONG, NEW_SHORT, CACHED, INFEASIBLE]) == expected


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_only_preemptive_orders_preempt_a_started_prompt(name):
    chosen = first(name, [OLD_LONG, NEW_SHORT, CACHED], started={1: 8_192})
    assert (chosen == 1) == (not BASELINES[name].preemptive)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_ties_break_by_id(name):
    twins = [PrefillJob(i, 0.0, 5.0, 9_000) for i in (7, 3, 5)]
    assert first(name, twins) == first(name, twins[::-1]) == 3


def test_unknown_baseline_error_lists_the_known_ones():
    with pytest.raises(InputError, match="fcfs"):
        RankedQueue(MODEL, 8_192, "fifo")


@pytest.mark.parametrize("name", sorted(BASELINES))
@pytest.mark.parametrize("shift", [-1_024.0, 4_096.0])
def test_plan_does_not_depend_on_the_origin_of_the_clock(name, shift):
    jobs = [PrefillJob(i, -0.5 * i, 4.0 - 0.25 * i, 1_000 * (i % 7) + 500) for i in range(30)]
    plans = []
    for by in (0.0, shift):
        queue = RankedQueue(MODEL, 8_192, name)
        for job in jobs:
            moved = replace(job, arrival_s=job.arrival_s + by, deadline_s=job.deadline_s + by)
            queue.add(moved)
        plans.append(queue.plan(1.0 + by, 8_192))
    assert plans[0] == plans[1]


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_plan_fits_its_budget_and_is_empty_without_jobs(name):
    queue = RankedQueue(MODEL, 8_192, name)
    assert queue.plan(0.0, 8_192).chunks == []
    for i in range(40):
        queue.add(PrefillJob(i, 0.0, 1e-6 * (i + 1), 10 ** (i % 8) + 1))
    plan = queue.plan(1.0, 8_192, 64)
    assert 0 < sum(chunk.tokens for chunk in plan.chunks) <= 8_192
    assert math.isfinite(plan.batch_s)


def test_job_is_queued_once():
    queue = RankedQueue(MODEL, 8_192, "fcfs")
    queue.add(NEW_SHORT)
    with pytest.raises(InputError, match="job 2 is queued already"):
        queue.add(NEW_SHORT)
    assert len(queue) == 1


@pytest.mark.parametrize(("page", "lead"), [(1, 8_192 - 700), (64, 8_192 - 320 - 448)])
def test_shortest_first_leaves_budget_for_shorter_prompts_beside_a_started_one(page, lead):
    queue = RankedQueue(MODEL, 8_192, "spf")
    for number, total in ((1, 30_000), (2, 300), (3, 400), (4, 9_000), (5, 40_000)):
        queue.add(PrefillJob(number, 0.0, 60.0, total))
    queue.progress(1, 8_192)
    chunks = queue.plan(0.0, 8_192, page).chunks
    # 9,000 tokens do not fit beside it, and no second prompt may be left unfinished.
    assert chunks == [(1, lead), (2, 300), (3, 400)]


def test_shortest_first_fills_the_batch_in_which_the_started_prompt_ends():
    queue = RankedQueue(MODEL, 8_192, "spf")
    for number, total in ((1, 9_000), (2, 300), (3, 40_000)):
        queue.add(PrefillJob(number, 0.0, 60.0, total))
    queue.progress(1, 8_192)
    assert queue.plan(0.0, 8_192).chunks == [(1, 808), (2, 300), (3, 8_192 - 1_108)]


@pytest.mark.parametrize("name", ["lpm", "hrrn-np"])
def test_long_queue_is_served_by_arrival(name):
    def first_of(count: int) -> int:
        queue = RankedQueue(MODEL, 8_192, name)
        for number in range(count):
            # The latest arrival has most of its prompt cached.
            done = 5_000 * (number == count - 1)
            queue.add(PrefillJob(number, 0.01 * number, 60.0, 5_100, done))
        queue.plan(10.0, 100)  # hrrn has no order before anything is computed
        return queue.plan(10.0, 8_192).chunks[0].id

    assert first_of(128) == 127
    assert first_of(129) == 0


def test_hrrn_ages_by_computed_tokens():
    queue = RankedQueue(MODEL, 8_192, "hrrn-np")
    queue.add(PrefillJob(1, 0.0, 60.0, 8_192))
    queue.add(PrefillJob(2, 0.5, 60.0, 40_000))
    assert queue.plan(0.6, 8_192).chunks == [(1, 8_192)]
    queue.remove(1)
    queue.add(PrefillJob(3, 0.9, 60.0, 1_000))
    # Aged by the clock, the third job would have the largest ratio.
    assert queue.plan(10.0, 8_192).chunks[0].id == 2
