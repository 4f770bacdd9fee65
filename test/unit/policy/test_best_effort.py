"""Requests without an objective yield to the others, and are served as on SGLang without them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.latency import PrefillModel, load_profile
from kairos.latency.table import StepTable
from kairos.policy.best_effort import STARVED_AFTER_S, WINDOW_S, ObjectiveTraffic
from kairos.policy.jobs import PrefillJob
from kairos.policy.preallocation import DecodeMemory, Preallocation, PreallocationRequest
from kairos.policy.priorities import PriorityQueues
from kairos.policy.residents import DecodeResident, Residents
from kairos.policy.slack import SlackPolicy
from kairos.policy.urgency import UrgencyQueue

MODEL = PrefillModel(0.008, 0.016, 1e-5, 1e-9)
CHUNK = 8_192
PROFILE = load_profile("minimax-m2.5-tp4-h200")
TABLE = StepTable.from_model(PROFILE.decode, 256, PROFILE.limits.kv_tokens)


def test_objectives_are_expected_for_a_while_after_the_newest() -> None:
    traffic = ObjectiveTraffic()
    assert not traffic.expected(0.0)
    traffic.note(5.0)
    traffic.note(2.0)
    assert traffic.expected(5.0 + WINDOW_S)
    assert not traffic.expected(5.1 + WINDOW_S)


# Prefill


def job(i: int, total: int, slo: float = math.inf, arrival: float = 0.0) -> PrefillJob:
    return PrefillJob(i, arrival, arrival + slo, total)


def queue_of(*jobs: PrefillJob) -> UrgencyQueue:
    queue = UrgencyQueue(MODEL, CHUNK)
    for one in jobs:
        queue.add(one)
    return queue


def planned(queue: UrgencyQueue, start_s: float = 0.0) -> list[int]:
    return [chunk.id for chunk in queue.plan(start_s, CHUNK).chunks]


def test_best_effort_prompts_follow_infeasible_ones_by_arrival() -> None:
    queue = queue_of(
        job(1, 100, arrival=-1.0), job(2, 200, arrival=-2.0), job(3, 9_000, 0.01), job(4, 300, 9.0)
    )
    assert queue.order(0.0) == [4, 3, 2, 1]


def test_best_effort_prompts_alone_fill_a_batch_as_on_sglang() -> None:
    # A slice would end the batch after 0.1 s, which is a chunk of about 4,000 tokens here.
    plan = UrgencyQueue(PrefillModel(0.0, 0.0, 2.5e-5, 0.0), CHUNK)
    for i in range(3):
        plan.add(job(i, 3_000, arrival=float(i)))
    chunks = plan.plan(3.0, CHUNK).chunks
    assert [(chunk.id, chunk.tokens) for chunk in chunks] == [(0, 3_000), (1, 3_000), (2, 2_192)]


def test_beside_objectives_they_get_the_slice_of_infeasible_prompts() -> None:
    queue = UrgencyQueue(PrefillModel(0.0, 0.0, 2.5e-5, 0.0), CHUNK)
    queue.add(job(1, 100, 5.0))
    queue.add(job(2, 50_000))
    assert 2_000 < sum(chunk.tokens for chunk in queue.plan(0.0, CHUNK).chunks) < 5_000


def test_a_starved_best_effort_prompt_is_served_under_endless_urgent_work() -> None:
    queue, now = queue_of(job(0, 2_000)), 0.0
    for i in range(1, 2_000):
        queue.add(job(i, CHUNK, 1.0, now))
        queue.add(job(-i, CHUNK, 1.0, now))
        plan = queue.plan(now, CHUNK)
        now += plan.batch_s
        for chunk in plan.chunks:
            queue.remove(chunk.id)
        if 0 in [chunk.id for chunk in plan.chunks]:
            break
    # Infeasible prompts share the credit: it may be spent at 16 s.
    assert STARVED_AFTER_S < now < 2 * STARVED_AFTER_S


def test_priorities_share_what_they_have_seen() -> None:
    queues = PriorityQueues(MODEL, CHUNK)
    queues.add(job(1, 100), 0)
    assert not queues.expects_objectives(0.0)
    queues.add(job(2, 100, 5.0), 1)
    assert queues.expects_objectives(1.0)
    queues.remove(2)
    assert queues.expects_objectives(1.0 + WINDOW_S)
    assert not queues.expects_objectives(2.0 + WINDOW_S)


# Decode memory


def prompt(i: int, tokens: int, *, slo: float = math.inf, at: float = 0.0) -> PreallocationRequest:
    return PreallocationRequest(i, tokens, at, at + slo, 0.1, best_effort=math.isinf(slo))


def room(free: float) -> DecodeMemory:
    return DecodeMemory(10_000, free, 10.0, [], np.empty(0), np.empty(0))


def granted(policy: Preallocation, prompts: list[PreallocationRequest], free: float) -> list[int]:
    return [prompts[grant.at].id for grant in policy.grant(prompts, room(free), 1.0)]


def test_memory_goes_to_best_effort_prompts_last_and_by_arrival() -> None:
    prompts = [
        prompt(1, 100, at=0.6),
        prompt(2, 300, at=0.5),
        prompt(3, 400, slo=0.2),
        prompt(4, 500, slo=9.0),
    ]
    assert granted(Preallocation(), prompts, 10_000) == [4, 3, 2, 1]
    # Beyond 60 % of memory in use, they leave it to later prompts with an objective.
    assert granted(Preallocation(), prompts, 3_500) == [4]


def test_alone_they_get_all_memory_in_sglangs_order() -> None:
    prompts = [prompt(1, 900, at=0.2), prompt(2, 3_000, at=0.1), prompt(3, 100, at=0.3)]
    assert granted(Preallocation(), prompts, 10_000) == [2, 1, 3]
    assert granted(Preallocation(), prompts, 2_000) == []


# Decode steps


def resident(
    i: int, context: int, *, tpot_s: float = math.inf, tokens: int = 50, last_s: float = 0.0
) -> DecodeResident:
    first_s = -tpot_s * (tokens + 1) if math.isfinite(tpot_s) else -1.0
    return DecodeResident(i, context, tokens, first_s, max(last_s, first_s), tpot_s)


def table_of(*residents: DecodeResident) -> Residents:
    table = Residents()
    for one in residents:
        table.add(one)
    return table


def running(table: Residents) -> set[int]:
    return set(table.rows["id"][table.rows["runs"]].tolist())


def test_without_objectives_all_run_join_and_are_kept_as_on_sglang() -> None:
    table = table_of(*(resident(i, 90_000 - i, tokens=i) for i in range(9)))
    policy = SlackPolicy(TABLE, 256)
    policy.select(table.rows, 0.0)
    assert running(table) == set(range(9))
    assert policy.all_run_for(table.rows, 0.0, 8)
    assert policy.retention_order(table.rows, 0.0, 1e-6) == list(range(8, -1, -1))
    waiting = table_of(*(resident(i, 1_000 * (9 - i)) for i in range(9)))
    joined = policy.admit(waiting.rows, 0.0, 800_000, 1_000_000, 9)
    assert len(joined) == 9, "memory is not kept free"


def test_best_effort_residents_yield_to_a_pace_that_they_would_break() -> None:
    alone_s = TABLE.step_s(1, 1_000, 1_000)
    table = table_of(
        resident(0, 1_000, tpot_s=1.2 * alone_s), *(resident(i, 150_000) for i in (1, 2, 3))
    )
    SlackPolicy(TABLE, 256).select(table.rows, 0.0)
    assert running(table) == {0}


def test_best_effort_residents_take_turns_and_starve_for_a_bounded_time() -> None:
    alone_s = TABLE.step_s(1, 1_000, 1_000)
    rows = [resident(0, 1_000, tpot_s=1.2 * alone_s)]
    rows += [resident(i, 150_000, last_s=float(-i)) for i in (1, 2, 3)]
    table = table_of(*rows)
    policy = SlackPolicy(TABLE, 256)
    policy.select(table.rows, 4.5)
    assert running(table) == {0} or 3 in running(table)
    policy.select(table.rows, policy.params.starvation_s + 0.5)
    assert 3 in running(table)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100_000), st.sampled_from([0.03, 0.05])), min_size=1),
    st.lists(st.integers(1, 100_000), max_size=20),
)
def test_best_effort_residents_never_cost_others_their_pace(
    feasible: list[tuple[int, float]], others: list[int]
) -> None:
    """A step with them is no longer than the tightest pace, or than the step without them."""
    plain = [resident(i, context, tpot_s=tpot) for i, (context, tpot) in enumerate(feasible)]
    alone = table_of(*plain)
    without_s = SlackPolicy(TABLE, 256).select(alone.rows, 0.0)
    mixed = table_of(*plain, *(resident(1_000 + i, context) for i, context in enumerate(others)))
    with_s = SlackPolicy(TABLE, 256).select(mixed.rows, 0.0)
    all_run = len(running(mixed)) == len(mixed.rows)
    assert all_run or with_s <= max(without_s, min(tpot for _, tpot in feasible)) + 1e-9


@pytest.mark.parametrize("first_s", [-5.0, 0.0])
def test_best_effort_requests_join_last(first_s: float) -> None:
    waiting = table_of(resident(1, 100), DecodeResident(2, 90_000, 0, first_s, 0.0, 0.03))
    order = list(SlackPolicy(TABLE, 256).admit(waiting.rows, 0.0, 0, 1_000_000, 256))
    assert [int(waiting.rows["id"][at]) for at in order] == [2, 1]
