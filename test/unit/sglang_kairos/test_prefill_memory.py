"""Memory of started prompts, against a stand-in for upstream's scheduler."""

from dataclasses import replace

import pytest
from sglang.srt.kairos.prefill.batch_composer import MAX_STARTED
from sglang.srt.kairos.shared_clock import SharedClock

from support.fake_req import FakeReq, fake_req
from support.prefill_loop import (
    CHUNK,
    INFEASIBLE_MS,
    FakeBatch,
    FakeKvPool,
    PrefillLoop,
    as_fake,
    form_batch,
    preempted_behind,
    run_dry,
)

pytestmark = pytest.mark.usefixtures("no_radix_cache")


def test_started_prompts_are_bounded() -> None:
    loop = PrefillLoop(max_total_num_tokens=10**9)
    for number in range(1, 3 * MAX_STARTED):
        # Each more urgent than the one before, and none finished by one batch.
        loop.waiting_queue.append(fake_req(number, 5 * CHUNK, 900_000 - 10_000 * number))
        loop.step()
        assert len(loop.started()) <= MAX_STARTED
    run_dry(loop)


def test_kv_held_by_started_prompts_is_bounded() -> None:
    loop = PrefillLoop(max_total_num_tokens=8 * CHUNK)
    for number in range(1, 12):
        loop.waiting_queue.append(fake_req(number, 3 * CHUNK, 900_000 - 10_000 * number))
        loop.step()
        held = sum(req.extend_end or 0 for req in loop.planner.preempted.reqs)
        assert held <= loop.max_total_num_tokens / 2
    run_dry(loop)


def test_no_prompt_is_started_into_the_memory_of_started_ones() -> None:
    loop = PrefillLoop()
    for number in range(1, 12):
        loop.waiting_queue.append(fake_req(number, 49_000, 900_000 - 10_000 * number))
        loop.step()
        loop.step()
        left = sum(len(r.origin_input_ids) - (r.extend_end or 0) for r in loop.started())
        assert left <= loop.free_tokens()
    assert len(run_dry(loop)) == 11


def test_pages_never_stretch_a_batch_beyond_the_chunk() -> None:
    loop = PrefillLoop(page_size=64)
    loop.waiting_queue = [fake_req(n, 65) for n in range(1, 60)]
    for _ in range(4):
        batch = loop.step()
        assert sum(-(-(r.extend_end or 0) // 64) * 64 for r in batch) <= CHUNK


def test_out_of_memory_for_the_urgent_prompt_lets_the_preempted_one_finish() -> None:
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, 4 * CHUNK, ttft_ms=INFEASIBLE_MS)]
    loop.step()
    loop.out_of_memory = True
    loop.waiting_queue.append(fake_req(2, 100))
    for _ in range(20):
        assert loop.step(), "the preempted prompt must go on, only it frees memory"
        if loop.chunked_req is None:
            break
    assert loop.chunked_req is None
    assert loop.planner.preempted.reqs == []
    loop.out_of_memory = False
    assert run_dry(loop) == ["r2"]


def test_kv_is_given_back_when_memory_is_short_the_longest_slack_first() -> None:
    loop = preempted_behind(3 * CHUNK)
    loop.waiting_queue.append(fake_req(3, 3 * CHUNK, 5_000))
    loop.step()
    preempted = loop.planner.preempted
    assert {req.rid for req in preempted.reqs} == {"r1", "r2"}
    for req in preempted.reqs:
        as_fake(req).pending_bootstrap = True
    loop.waiting_queue.append(fake_req(4, 100, 400))
    preempted.release_one(loop, [fake_req(5, loop.max_total_num_tokens + 1)])
    assert loop.requeued == [], "it would not make room"
    preempted.release_one(loop, loop.waiting_queue[-1:])
    assert loop.requeued == ["r2"]
    assert sorted(run_dry(loop)) == ["r1", "r2", "r3", "r4"]


def test_a_batch_is_formed_after_kv_was_given_back() -> None:
    """Upstream forgets how far a prompt was that it puts back into the queue."""
    loop = preempted_behind(CHUNK)
    as_fake(loop.planner.preempted.reqs[0]).pending_bootstrap = True
    loop.waiting_queue.append(fake_req(3, CHUNK, 400))
    calls = []

    def none_at_first(upstream: PrefillLoop) -> FakeBatch | None:
        calls.append(len(upstream.waiting_queue))
        if len(calls) == 1:
            return None
        upstream.waiting_queue.sort(key=lambda req: -req.kairos.number)
        return form_batch(upstream)

    batch = loop.step(none_at_first)
    assert loop.requeued == ["r1"]
    assert [req.rid for req in batch] == ["r3"]
    assert run_dry(loop) == ["r1"]


def test_memory_is_counted_in_pages() -> None:
    page = 64
    loop = PrefillLoop(page_size=page, max_total_num_tokens=20 * page)
    loop.waiting_queue = [fake_req(n, page + 1) for n in range(1, 60)]
    batch = loop.step()
    assert batch
    assert sum(-(-len(r.origin_input_ids) // page) for r in batch) <= 20


def test_freed_memory_goes_to_a_starved_prompt() -> None:
    """Without a reservation, shorter prompts take all of it for as long as they come."""
    now = 1000.0
    loop = PrefillLoop(
        max_total_num_tokens=10 * CHUNK, clock=SharedClock(1, local_time=lambda: now)
    )
    # Until when, tokens: KV on its way to decode servers.
    sending = [(now + 0.1 * n, CHUNK // 2) for n in range(1, 13)]

    def free() -> int:
        return loop.free_tokens() - sum(tokens for _, tokens in sending)

    def form_in_memory(upstream: PrefillLoop) -> FakeBatch | None:
        everything, left = upstream.waiting_queue, free()
        fitting = []
        for req in everything:
            left -= len(req.origin_input_ids)
            if left < 0:
                break  # upstream goes no further
            fitting.append(req)
        upstream.waiting_queue = fitting
        formed = form_batch(upstream)
        upstream.waiting_queue += [req for req in everything if req not in fitting]
        return formed

    loop.token_to_kv_pool_allocator = FakeKvPool(free)
    number = 0
    while now < 1200.0:
        while len(loop.waiting_queue) < 2:
            number += 1
            req = fake_req(number, 6 * CHUNK if number == 1 else CHUNK // 2, 1_000)
            req.kairos.request = replace(req.kairos.request, arrival_s=now)
            loop.waiting_queue.append(req)
        batch: list[FakeReq] = loop.step(form_in_memory)
        now += 0.1
        for req in batch:
            if req.kairos.number == 1:
                assert now < 1060.0
                return
            sending.append((now + 1.2, req.extend_end or 0))
        sending = [one for one in sending if one[0] > now]
    raise AssertionError("overtaken for ever")


def test_kv_that_a_transfer_may_still_read_is_kept() -> None:
    loop = preempted_behind(3 * CHUNK)
    loop.out_of_memory = True
    loop.waiting_queue.append(fake_req(3, 100, 400))
    loop.step()
    assert loop.requeued == []


def test_a_prompt_that_does_not_fit_does_not_stop_shorter_ones_behind_it() -> None:
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, 4 * CHUNK, 9_000), fake_req(2, 100)]
    loop.token_to_kv_pool_allocator = FakeKvPool(lambda: 2 * CHUNK)
    assert [req.rid for req in loop.step()] == ["r2"]
