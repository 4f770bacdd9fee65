"""What the planner lets upstream do in one batch, against a stand-in for upstream's scheduler."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.kairos import prefill_planner
from sglang.srt.kairos.prefill_planner import PrefillPlanner
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.policy import engine_defaults
from kairos.replay.plan.arms import arm_spec
from kairos.slo import Slo
from support.fake_scheduler import fake_scheduler
from support.prefill_loop import (
    CHUNK,
    HOPELESS_MS,
    PROFILE,
    Req,
    Scheduler,
    preempted_behind,
    request,
    run_dry,
)

pytestmark = pytest.mark.usefixtures("no_radix_cache")


LENGTHS = st.integers(1, 12_000)
SLOS = st.sampled_from([1.0, 300.0, 1_000.0, 5_000.0, 60_000.0])
ARRIVALS = st.lists(
    st.lists(st.tuples(LENGTHS, SLOS, st.integers(0, 4_000)), max_size=4), min_size=1, max_size=8
)


@settings(deadline=None, max_examples=150)
@given(ARRIVALS)
def test_every_request_is_prefilled_once_whatever_arrives(
    arrivals: list[list[tuple[int, float, int]]],
) -> None:
    scheduler = Scheduler()
    number = 0
    finished: list[str] = []
    for wave in arrivals:
        for tokens, ttft_ms, cached in wave:
            number += 1
            scheduler.waiting_queue.append(request(number, tokens, ttft_ms, cached))
        batch = scheduler.step()
        assert bool(batch) == bool(number > len(finished))
        finished += [r.rid for r in batch if r.extend_end == len(r.origin_input_ids)]
    finished += run_dry(scheduler) if number > len(finished) else []
    assert sorted(finished) == sorted(f"r{n}" for n in range(1, number + 1))
    assert not scheduler.planner._jobs
    assert len(scheduler.planner._queue) == 0
    assert scheduler.chunked_prefill_size == CHUNK


def test_an_urgent_request_parks_a_long_prompt_and_it_resumes() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 10 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.waiting_queue.append(request(2, 3 * CHUNK))
    scheduler.step()
    assert [req.rid for req in scheduler.planner.preempted] == ["r1"]
    assert run_dry(scheduler) == ["r2", "r1"]


def test_late_prompts_of_like_slo_are_finished_one_after_the_other() -> None:
    """They took turns slice by slice, and together grew beyond the memory."""
    scheduler = Scheduler()
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    for number in range(1, 6):
        scheduler.waiting_queue.append(request(number, 49_000, HOPELESS_MS))
        scheduler.step()
    run_dry(scheduler)
    assert scheduler.planner.snapshot()["preemptions"] <= 5


def test_a_prompt_whose_turn_to_be_looked_up_comes_later_counts_without_its_cached_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns: list[Req] = []
    monkeypatch.setattr(prefill_planner, "match_prefixes", lambda *_: turns)
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 3 * CHUNK, 1_000), request(2, 3 * CHUNK)]
    scheduler.step()
    later = scheduler.waiting_queue[-1]
    later.num_matched_prefix_tokens = 2 * CHUNK
    turns.append(later)
    scheduler.step()
    assert scheduler.planner._queue._queues[0].job(2)[2] == 2 * CHUNK


def test_a_prompt_that_upstream_is_about_to_end_is_not_preempted() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 10 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.chunked_req.to_finish = "abort"
    scheduler.waiting_queue.append(request(2, 3 * CHUNK))
    scheduler.step()
    assert scheduler.planner.preempted == []


def test_the_result_of_a_parked_prompt_is_that_of_a_started_one() -> None:
    scheduler = preempted_behind(3 * CHUNK)
    (long,) = scheduler.planner.preempted
    running, seen = scheduler.chunked_req, []

    def process(upstream: Scheduler, batch: Any, result: Any) -> None:
        seen.append(upstream.chunked_req)

    for reqs in ([long], [running], []):
        batch = SimpleNamespace(reqs=reqs)
        scheduler.planner.process_result(process, scheduler, batch, None)
    assert seen == [long, running, running]
    assert scheduler.chunked_req is running


def test_a_prompt_that_upstream_gives_back_to_the_queue_starts_anew() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 5 * CHUNK)]
    scheduler.step()
    req, scheduler.chunked_req = scheduler.chunked_req, None
    scheduler.optimistic_release_and_requeue(req)
    req.num_matched_prefix_tokens = 2 * CHUNK  # what the radix cache kept of it
    batch = scheduler.step()
    assert [(r.rid, r.prefix_len) for r in batch] == [("r1", 2 * CHUNK)]
    assert run_dry(scheduler) == ["r1"]


def test_priority_comes_before_urgency() -> None:
    scheduler = Scheduler()
    scheduler.policy.enable_priority_scheduling = True
    low, high = request(1, CHUNK, 10_000), request(2, CHUNK, 60_000)
    low.priority, high.priority = 1, 2
    scheduler.waiting_queue = [low, high]
    assert run_dry(scheduler) == ["r2", "r1"]


def test_an_urgent_request_does_not_wait_for_the_adapter_of_a_long_prompt() -> None:
    """Upstream continues the long prompt first, and passes over who does not fit beside it."""
    scheduler = Scheduler(adapters=1)
    scheduler.waiting_queue = [request(1, 10 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.waiting_queue.append(request(2, 100))
    scheduler.waiting_queue[-1].lora_id = "a"
    assert [req.rid for req in scheduler.step()] == ["r2"]
    assert run_dry(scheduler) == ["r1"]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(LENGTHS, SLOS, st.sampled_from([None, "a", "b"])), min_size=1, max_size=12),
    st.integers(1, 3),
)
def test_no_adapter_is_starved(arrivals: list[tuple[int, float, str | None]], most: int) -> None:
    scheduler = Scheduler(adapters=most)
    for number, (tokens, ttft_ms, adapter) in enumerate(arrivals):
        scheduler.waiting_queue.append(request(number, tokens, ttft_ms))
        scheduler.waiting_queue[-1].lora_id = adapter
        batch = scheduler.step()
        assert len({req.lora_id for req in batch}) <= most
    if scheduler.waiting_queue or scheduler.started():
        run_dry(scheduler)


def test_health_is_counted() -> None:
    scheduler = preempted_behind(3 * CHUNK)
    run_dry(scheduler)
    figures = scheduler.planner.snapshot()
    assert figures["preemptions"] == 1
    assert figures["overtakes"] == 1
    assert figures["preempted"] == 0


def test_a_late_batch_does_not_let_the_plan_run_ahead() -> None:
    """Predictions that are too long would otherwise add up while the server is busy."""
    scheduler = Scheduler()
    clock = SharedClock(1, lambda: 1000.0)  # batches take no time at all
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, clock)
    scheduler.waiting_queue = [request(1, 50 * CHUNK)]
    for _ in range(20):
        scheduler.step()
    assert scheduler.planner._start_s() <= 1000.0 + scheduler.planner._in_flight_s


def test_aborts_end_parked_prompts_and_leave_the_running_one() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 10 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.waiting_queue.append(request(2, 9 * CHUNK))
    scheduler.step()
    running = scheduler.chunked_req

    def end(upstream: Scheduler) -> None:
        if (req := upstream._pending_chunked_abort_req) is not None:
            upstream.ended.append(req.rid)
            upstream.chunked_req = upstream._pending_chunked_abort_req = None

    for _ in range(2):  # by rid, and by the disconnect that follows
        scheduler.planner.abort(SimpleNamespace(abort_all=False, rid="r1"))
    scheduler.planner.process_aborts(end, scheduler)
    assert scheduler.ended == ["r1"]
    assert scheduler.planner.preempted == []
    assert scheduler.chunked_req is running
    assert run_dry(scheduler) == ["r2"]


def test_the_simulation_of_an_arm_plans_as_the_servers_do() -> None:
    budget = PROFILE.limits.chunk_tokens
    transfer_s = PROFILE.kv.transfer_s(budget)
    simulated = arm_spec("kairos", "tiny-fast").settings(transfer_s)
    assert simulated is not None
    assert simulated.urgency == Scheduler().planner._queue._params


def test_deadlines_leave_room_for_the_longer_handover_after_prefill() -> None:
    early, after = Scheduler(), Scheduler()
    after.server_args.disaggregation_decode_allocation_policy = "prefill_complete"
    after.planner = PrefillPlanner(PROFILE, after, SharedClock(1))
    tails = [one.planner._queue._params.post_prefill_s for one in (early, after)]
    longer = engine_defaults.HANDOVER_AFTER_PREFILL_S - engine_defaults.HANDOVER_S
    assert tails[1] - tails[0] == pytest.approx(longer)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"enable_lora": True}, None),
        (
            {"enable_lora": True, "enable_lora_overlap_loading": True},
            "overlapped loading of LoRA adapters",
        ),
        ({"is_generation": False}, "an embedding model"),
        ({"is_mixed_chunk": True}, "mixed chunks"),
        ({"truncation_align_size": 64, "page_size": 64}, None),
        (
            {"truncation_align_size": 4096, "page_size": 64},
            "deterministic inference with chunks of a fixed size",
        ),
        ({"chunked_prefill_size": None}, "chunked prefill is off"),
    ],
)
def test_what_cannot_be_planned_is_said(change: dict[str, Any], reason: str | None) -> None:
    assert prefill_planner.planning_refusal(fake_scheduler("prefill", **change)) == reason


def test_an_empty_prompt_is_a_job_like_any_other() -> None:
    """It once ended the scheduler: -1 tokens of it were cached."""
    scheduler = Scheduler()
    empty = Req("r1", [], RequestSlo(Slo(60_000, 50), time.monotonic(), 1))
    scheduler.waiting_queue = [empty, request(2, 100)]
    assert {req.rid for req in scheduler.step()} == {"r1", "r2"}


def test_aborted_prompts_are_forgotten_though_nothing_is_left_to_plan() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, CHUNK), request(2, CHUNK), request(3, CHUNK)]
    scheduler.step()
    scheduler.waiting_queue = []
    assert scheduler.step() == []
    assert scheduler.planner.has_nothing()


def test_of_a_burst_with_one_prefix_those_behind_the_first_are_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They once counted in full for as long as they waited, and were given up."""
    cached = 0

    def match(waiting: list[Req], _: object) -> list[Req]:
        new = [req for req in waiting if not req.kairos.matched]
        for req in new:
            shared = req.origin_input_ids[0] == 7
            req.num_matched_prefix_tokens, req.kairos.matched = cached * shared, True
        return new

    monkeypatch.setattr(prefill_planner, "match_prefixes", match)
    scheduler = Scheduler()
    burst = [request(n, CHUNK, 5_000) for n in range(1, 4)]
    for n, req in enumerate(burst):
        req.origin_input_ids = [7] * (CHUNK - 10) + [n] * 10
    other = request(9, CHUNK)
    scheduler.waiting_queue = [*burst, other]
    (first,) = scheduler.step()
    cached = CHUNK - 10
    scheduler.planner.process_result(
        lambda *_: None, scheduler, SimpleNamespace(reqs=[first]), None
    )
    batch = scheduler.step()
    assert {req.rid for req in batch} >= {req.rid for req in burst if req is not first}
    assert other.num_matched_prefix_tokens == 0
