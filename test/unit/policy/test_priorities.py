"""Priority first, urgency within."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.latency import Chunk, load_profile
from kairos.policy.jobs import PrefillJob
from kairos.policy.priorities import PriorityQueues
from kairos.policy.urgency import UrgencyParams, UrgencyQueue

MODEL = load_profile("tiny-fast").prefill
CHUNK = 2048
BUDGET = 8192


def job(number: int, tokens: int, due_s: float = 60.0, done: int = 0) -> PrefillJob:
    return PrefillJob(number, 0.0, due_s, tokens, done)


def planned(jobs: list[tuple[PrefillJob, int]], budget: int = BUDGET) -> dict[int, int]:
    queues = PriorityQueues(MODEL, CHUNK)
    for each, level in jobs:
        queues.add(each, level)
    return dict(queues.plan(0.0, budget).chunks)


def test_a_higher_priority_is_served_first_whatever_the_deadlines() -> None:
    urgent, important = (job(1, 3000, due_s=1.0), 0), (job(2, CHUNK, due_s=50.0), -1)
    assert list(planned([urgent, important], budget=CHUNK)) == [2]


def test_a_lower_priority_fills_the_rest_of_the_batch() -> None:
    assert planned([(job(1, 1000), 0), (job(2, 300), -1)]) == {2: 300, 1: 1000}


def test_a_lower_priority_makes_no_higher_one_miss_its_deadline() -> None:
    alone_s = MODEL.batch_s([Chunk(0, 300)])
    tight = job(2, 300, due_s=alone_s + 0.01)
    assert planned([(job(1, 4000), 0), (tight, -1)]) == {2: 300}


@given(st.lists(st.tuples(st.integers(1, 9000), st.floats(0.05, 60.0)), min_size=1, max_size=9))
def test_one_priority_is_one_queue(jobs: list[tuple[int, float]]) -> None:
    queue, queues = UrgencyQueue(MODEL, CHUNK), PriorityQueues(MODEL, CHUNK)
    for number, (tokens, due_s) in enumerate(jobs):
        queue.add(job(number, tokens, due_s))
        queues.add(job(number, tokens, due_s))
    assert queue.plan(0.0, BUDGET).chunks == queues.plan(0.0, BUDGET).chunks


@given(
    st.lists(st.tuples(st.integers(1, 9000), st.floats(0.05, 60.0), st.integers(-2, 2)), max_size=9)
)
def test_plans_fit_and_lower_priorities_wait_while_a_higher_one_gets_no_chunk(
    jobs: list[tuple[int, float, int]],
) -> None:
    plan = planned([(job(n, tokens, due), level) for n, (tokens, due, level) in enumerate(jobs)])
    assert sum(plan.values()) <= BUDGET
    assert bool(plan) == bool(jobs)
    if plan:
        assert jobs[next(iter(plan))][2] == min(level for _, _, level in jobs)


def test_updates_reach_the_right_queue() -> None:
    queues = PriorityQueues(MODEL, CHUNK, UrgencyParams())
    for number, level in ((1, 0), (2, 5), (3, -5)):
        queues.add(job(number, 5000), level)
    queues.progress(3, 4900)
    assert next(iter(queues.plan(0.0, BUDGET).chunks)) == (3, 100)
    queues.remove(3)
    queues.remove(2)
    assert len(queues) == 1
    assert [number for number, _ in queues.plan(0.0, BUDGET).chunks] == [1]


def test_predictions_are_scaled() -> None:
    queues = PriorityQueues(MODEL, CHUNK)
    queues.add(job(1, 1000))
    before = queues.plan(0.0, BUDGET).batch_s
    queues.predict_with(MODEL, 3.0)
    assert queues.plan(0.0, BUDGET).batch_s == 3.0 * before


def test_an_id_is_queued_once_whatever_the_level() -> None:
    queues = PriorityQueues(MODEL, CHUNK)
    queues.add(job(1, 1000), 0)
    for level in (0, 1):
        with pytest.raises(InputError, match="job 1 is queued already"):
            queues.add(job(1, 1000), level)
    assert len(queues) == 1
    queues.remove(1)
    assert queues.plan(0.0, BUDGET).chunks == []


def test_a_discarded_plan_charges_the_lower_priority_nothing() -> None:
    """The lower one's chunk would make the higher one late."""
    params = UrgencyParams(starvation_share=1.0, min_chunk=16, slice_s=1.0, infeasible_slice_s=1.0)
    queues = PriorityQueues(MODEL, CHUNK, params)
    queues.add(PrefillJob(1, -1_000.0, -999.0, 90_300, 90_000), 1)
    queues.plan(0.0, 16)  # earns credit
    # Room for the least chunk, were it not for its attention.
    due_s = MODEL.batch_s([Chunk(0, 300)]) + 18 * MODEL.per_token_s
    for number in range(3, 8):
        queues.add(PrefillJob(number, 0.0, due_s, 300), 0)
        assert dict(queues.plan(0.0, BUDGET).chunks) == {number: 300}
        queues.remove(number)
    assert queues.grants == 0
    assert dict(queues.plan(0.0, BUDGET).chunks) == {1: 300}
    assert queues.grants == 1


@pytest.mark.parametrize("tokens", [1_000, 1_400, 2_000])
def test_a_long_prompt_of_a_lower_priority_continues_in_the_rest_of_the_slice(
    tokens: int,
) -> None:
    """It was cut for a slice of its own, did not fit beside the other, and got nothing."""
    model = load_profile("minimax-m2.5-tp4-h200").prefill
    queues = PriorityQueues(model, BUDGET, UrgencyParams(slice_s=0.2, post_prefill_s=0.09))
    queues.add(job(1, tokens), 0)
    queues.add(job(2, 80_000, done=40_000), 1)
    plan = dict(queues.plan(0.0, BUDGET).chunks)
    assert plan[1] == tokens
    assert plan[2] > 1_000
    chunks = [Chunk(0, tokens), Chunk(40_000, plan[2])]
    assert model.batch_s(chunks) <= 0.2
