"""Batches of the planner, against a stand-in for upstream's scheduler."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.kairos.prefill import planner as prefill_planner
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.support import planning_refusal

from kairos.latency import Chunk
from kairos.policy import engine_defaults
from kairos.replay.plan.arms import arm_spec
from support.fake_req import FakeAbort, FakeAbortReq, FakeReq, fake_req
from support.fake_scheduler import fake_scheduler
from support.prefill_loop import (
    CHUNK,
    INFEASIBLE_MS,
    PROFILE,
    FakeBatch,
    PrefillLoop,
    is_complete,
    preempted_behind,
    run_dry,
)

pytestmark = pytest.mark.usefixtures("no_radix_cache")


LENGTHS = st.integers(1, 12_000)
SLOS = st.sampled_from([1.0, 300.0, 1_000.0, 5_000.0, 60_000.0, math.inf])
ARRIVALS = st.lists(
    st.lists(st.tuples(LENGTHS, SLOS, st.integers(0, 4_000)), max_size=4), min_size=1, max_size=8
)


@settings(deadline=None, max_examples=150)
@given(ARRIVALS)
def test_every_request_is_prefilled_once_whatever_arrives(
    arrivals: list[list[tuple[int, float, int]]],
) -> None:
    loop = PrefillLoop()
    number = 0
    finished: list[str] = []
    for wave in arrivals:
        for tokens, ttft_ms, cached in wave:
            number += 1
            loop.waiting_queue.append(fake_req(number, tokens, ttft_ms, cached))
        batch = loop.step()
        assert bool(batch) == bool(number > len(finished))
        finished += [r.rid for r in batch if is_complete(r)]
    finished += run_dry(loop) if number > len(finished) else []
    assert sorted(finished) == sorted(f"r{n}" for n in range(1, number + 1))
    loop.step()
    assert loop.planner.is_idle()
    assert loop.chunked_prefill_size == CHUNK


def test_an_urgent_request_preempts_a_long_prompt_and_it_resumes() -> None:
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, 10 * CHUNK, ttft_ms=INFEASIBLE_MS)]
    loop.step()
    loop.waiting_queue.append(fake_req(2, 3 * CHUNK))
    loop.step()
    assert [req.rid for req in loop.planner.preempted.reqs] == ["r1"]
    assert run_dry(loop) == ["r2", "r1"]


def test_best_effort_prompts_alone_are_left_to_upstream_and_beside_others_come_last() -> None:
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, 3 * CHUNK, math.inf), fake_req(2, 500, math.inf)]
    assert [req.extend_end for req in loop.step()] == [CHUNK], "no slice ends the batch earlier"
    assert run_dry(loop) == ["r1", "r2"]
    loop.waiting_queue = [fake_req(3, 3 * CHUNK, math.inf), fake_req(4, 500)]
    assert run_dry(loop) == ["r4", "r3"]


def test_infeasible_prompts_of_equal_slo_are_finished_one_after_the_other() -> None:
    """Taking turns slice by slice, they would together outgrow the memory."""
    loop = PrefillLoop()
    for number in range(1, 6):
        loop.waiting_queue.append(fake_req(number, 49_000, INFEASIBLE_MS))
        loop.step()
    run_dry(loop)
    assert loop.planner.snapshot()["preemptions"] <= 5


def test_a_late_look_up_counts_the_cached_part_of_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[FakeReq] = []
    monkeypatch.setattr(prefill_planner, "match_prefixes", lambda *_: looked_up)
    loop = PrefillLoop()
    cached = fake_req(1, 20 * CHUNK, 1_500)
    loop.waiting_queue = [cached, fake_req(2, 5 * CHUNK)]
    assert [req.rid for req in loop.step()] == ["r2"], "in full, the other would be infeasible"
    cached.num_matched_prefix_tokens = 19 * CHUNK
    looked_up.append(cached)
    assert [req.rid for req in loop.step()] == ["r1"]


def test_a_prompt_that_upstream_is_about_to_end_is_not_preempted() -> None:
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, 10 * CHUNK, ttft_ms=INFEASIBLE_MS)]
    loop.step()
    (long,) = loop.started()
    long.to_finish = FakeAbort()
    loop.waiting_queue.append(fake_req(2, 3 * CHUNK))
    loop.step()
    assert loop.planner.preempted.reqs == []


def test_the_result_of_a_preempted_prompt_is_that_of_a_started_one() -> None:
    loop = preempted_behind(3 * CHUNK)
    (long,) = loop.planner.preempted.reqs
    running, seen = loop.chunked_req, []
    for reqs in ([long], [running], []):
        batch = FakeBatch(reqs)
        loop.planner.process_result(lambda: seen.append(loop.chunked_req), loop, batch)
    assert seen == [long, running, running]
    assert loop.chunked_req is running


def test_a_prompt_that_upstream_gives_back_to_the_queue_starts_anew() -> None:
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, 5 * CHUNK)]
    loop.step()
    (req,), loop.chunked_req = loop.started(), None
    loop.optimistic_release_and_requeue(req)
    req.num_matched_prefix_tokens = 2 * CHUNK  # kept by the radix cache
    batch = loop.step()
    assert [(r.rid, r.prefix_len) for r in batch] == [("r1", 2 * CHUNK)]
    assert run_dry(loop) == ["r1"]


def test_priority_comes_before_urgency() -> None:
    loop = PrefillLoop()
    loop.policy.enable_priority_scheduling = True
    low, high = fake_req(1, CHUNK, 10_000), fake_req(2, CHUNK, 60_000)
    low.priority, high.priority = 1, 2
    loop.waiting_queue = [low, high]
    assert run_dry(loop) == ["r2", "r1"]


def test_an_urgent_request_does_not_wait_for_the_adapter_of_a_long_prompt() -> None:
    """Upstream continues the long prompt first and passes over adapters that do not fit."""
    loop = PrefillLoop(adapters=1)
    loop.waiting_queue = [fake_req(1, 10 * CHUNK, ttft_ms=INFEASIBLE_MS)]
    loop.step()
    urgent = fake_req(2, 100)
    urgent.lora_id = "a"
    loop.waiting_queue.append(urgent)
    assert [req.rid for req in loop.step()] == ["r2"]
    assert run_dry(loop) == ["r1"]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(LENGTHS, SLOS, st.sampled_from([None, "a", "b"])), min_size=1, max_size=12),
    st.integers(1, 3),
)
def test_no_adapter_is_starved(arrivals: list[tuple[int, float, str | None]], most: int) -> None:
    loop = PrefillLoop(adapters=most)
    for number, (tokens, ttft_ms, adapter) in enumerate(arrivals):
        req = fake_req(number, tokens, ttft_ms)
        req.lora_id = adapter
        loop.waiting_queue.append(req)
        batch = loop.step()
        assert len({req.lora_id for req in batch}) <= most
    if loop.waiting_queue or loop.started():
        run_dry(loop)


def test_preemptions_and_overtakes_are_counted() -> None:
    loop = preempted_behind(3 * CHUNK)
    run_dry(loop)
    figures = loop.planner.snapshot()
    assert figures["preemptions"] == 1
    assert figures["overtakes"] == 1
    assert figures["preempted"] == 0


def test_a_late_batch_does_not_let_the_plan_run_ahead() -> None:
    """Predictions that are too long would otherwise add up while the server is busy."""
    # Batches take no time at all.
    loop = PrefillLoop(clock=SharedClock(1, local_time=lambda: 1000.0))
    loop.waiting_queue = [fake_req(1, 50 * CHUNK)]
    for _ in range(20):
        (req,) = loop.step()
        chunk = Chunk(req.prefix_len, (req.extend_end or 0) - req.prefix_len)
        assert loop.planner.next_start_s() <= 1000.0 + PROFILE.prefill.batch_s([chunk])


def test_aborts_end_preempted_prompts_and_leave_the_running_one() -> None:
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, 10 * CHUNK, ttft_ms=INFEASIBLE_MS)]
    loop.step()
    loop.waiting_queue.append(fake_req(2, 9 * CHUNK))
    loop.step()
    running = loop.chunked_req

    for _ in range(2):  # by rid, and by the disconnect that follows
        loop.planner.preempted.abort(FakeAbortReq("r1"))
    loop.planner.preempted.process_aborts(loop.end_aborted, loop)
    assert loop.ended == ["r1"]
    assert loop.planner.preempted.reqs == []
    assert loop.chunked_req is running
    assert run_dry(loop) == ["r2"]


def test_the_simulation_of_an_arm_plans_as_the_servers_do() -> None:
    simulated = arm_spec("kairos", "tiny-fast").settings(PROFILE)
    assert simulated is not None
    assert simulated.urgency == PrefillLoop().planner._queue._params


def test_deadlines_leave_room_for_the_longer_handover_after_prefill() -> None:
    early, after = PrefillLoop(), PrefillLoop(allocation_policy="prefill_complete")
    tails = [loop.planner.urgency.post_prefill_s for loop in (early, after)]
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
def test_a_mode_without_planning_is_named(change: dict[str, object], reason: str | None) -> None:
    assert planning_refusal(fake_scheduler("prefill", **change)) == reason


def test_an_empty_prompt_is_computed() -> None:
    """Its cached tokens must not become -1."""
    loop = PrefillLoop()
    empty = fake_req(1, 1)
    empty.origin_input_ids = []
    loop.waiting_queue = [empty, fake_req(2, 100)]
    assert {req.rid for req in loop.step()} == {"r1", "r2"}


def test_aborted_prompts_are_dropped_when_nothing_is_left_to_plan() -> None:
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, CHUNK), fake_req(2, CHUNK), fake_req(3, CHUNK)]
    loop.step()
    loop.waiting_queue = []
    assert loop.step() == []
    assert loop.planner.is_idle()


def test_prompts_with_the_prefix_of_a_computed_one_are_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted in full, they would be infeasible for as long as they wait."""
    cached = 0

    def match(waiting: list[FakeReq], _: object) -> list[FakeReq]:
        new = [req for req in waiting if not req.kairos.matched]
        for req in new:
            shared = req.origin_input_ids[0] == 7
            req.num_matched_prefix_tokens, req.kairos.matched = cached * shared, True
        return new

    monkeypatch.setattr(prefill_planner, "match_prefixes", match)
    loop = PrefillLoop()
    burst = [fake_req(n, CHUNK, 5_000) for n in range(1, 4)]
    for n, req in enumerate(burst):
        req.origin_input_ids = [7] * (CHUNK - 10) + [n] * 10
    other = fake_req(9, CHUNK)
    loop.waiting_queue = [*burst, other]
    (first,) = loop.step()
    cached = CHUNK - 10
    loop.planner.process_result(lambda: None, loop, FakeBatch([first]))
    batch = loop.step()
    assert {req.rid for req in batch} >= {req.rid for req in burst if req is not first}
    assert other.num_matched_prefix_tokens == 0
