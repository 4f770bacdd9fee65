"""Memory of started prompts, against a stand-in for upstream's scheduler."""

from typing import Any

import pytest
from sglang.srt.kairos.prefill_planner import MAX_STARTED, PrefillPlanner
from sglang.srt.kairos.shared_clock import SharedClock

from support.prefill_loop import (
    CHUNK,
    HOPELESS_MS,
    PROFILE,
    Scheduler,
    form,
    preempted_behind,
    request,
    run_dry,
)

pytestmark = pytest.mark.usefixtures("no_radix_cache")


def test_started_prompts_are_bounded() -> None:
    scheduler = Scheduler()
    scheduler.max_total_num_tokens = 10**9
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    for number in range(1, 3 * MAX_STARTED):
        # Each more urgent than the one before, and none finished by one batch.
        scheduler.waiting_queue.append(request(number, 5 * CHUNK, 900_000 - 10_000 * number))
        scheduler.step()
        started = [*scheduler.planner.preempted, scheduler.chunked_req]
        assert len([req for req in started if req]) <= MAX_STARTED
    run_dry(scheduler)


def test_kv_held_by_started_prompts_is_bounded() -> None:
    scheduler = Scheduler()
    scheduler.max_total_num_tokens = 8 * CHUNK
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    for number in range(1, 12):
        scheduler.waiting_queue.append(request(number, 3 * CHUNK, 900_000 - 10_000 * number))
        scheduler.step()
        preempted = sum(req.extend_end for req in scheduler.planner.preempted)
        assert preempted <= scheduler.max_total_num_tokens / 2
    run_dry(scheduler)


def test_nobody_is_started_into_the_memory_of_those_that_are() -> None:
    scheduler = Scheduler()
    for number in range(1, 12):
        scheduler.waiting_queue.append(request(number, 49_000, 900_000 - 10_000 * number))
        scheduler.step()
        scheduler.step()
        owed = sum(len(r.origin_input_ids) - r.extend_end for r in scheduler.started())
        assert owed <= scheduler.free_tokens()
    assert len(run_dry(scheduler)) == 11


def test_pages_never_stretch_a_batch_beyond_the_chunk() -> None:
    scheduler = Scheduler()
    scheduler.page_size = 64
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    scheduler.waiting_queue = [request(n, 65) for n in range(1, 60)]
    for _ in range(4):
        batch = scheduler.step()
        assert sum(-(-r.extend_end // 64) * 64 for r in batch) <= CHUNK


def test_out_of_memory_for_the_urgent_one_lets_the_preempted_one_finish() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 4 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.out_of_memory = True
    scheduler.waiting_queue.append(request(2, 100))
    for _ in range(20):
        assert scheduler.step(), "the preempted prompt must go on, it is what frees memory"
        if scheduler.chunked_req is None:
            break
    assert scheduler.chunked_req is None
    assert scheduler.planner.preempted == []
    scheduler.out_of_memory = False
    assert run_dry(scheduler) == ["r2"]


def test_kv_is_given_back_when_memory_is_short_the_longest_slack_first() -> None:
    scheduler = preempted_behind(3 * CHUNK)
    scheduler.waiting_queue.append(request(3, 3 * CHUNK, 5_000))
    scheduler.step()
    assert {req.rid for req in scheduler.planner.preempted} == {"r1", "r2"}
    for req in scheduler.planner.preempted:
        req.pending_bootstrap = True
    scheduler.waiting_queue.append(request(4, 100, 400))
    scheduler.planner._give_back(scheduler, [request(5, scheduler.max_total_num_tokens + 1)])
    assert scheduler.requeued == []  # for nothing
    scheduler.planner._give_back(scheduler, scheduler.waiting_queue[-1:])
    assert scheduler.requeued == ["r2"]
    assert sorted(run_dry(scheduler)) == ["r1", "r2", "r3", "r4"]


def test_a_batch_is_formed_after_kv_was_given_back() -> None:
    """Upstream forgets how far a prompt was that it puts back into the queue."""
    scheduler = preempted_behind(CHUNK)
    scheduler.planner.preempted[0].pending_bootstrap = True
    scheduler.waiting_queue.append(request(3, CHUNK, 400))
    calls = []

    def none_at_first(upstream: Scheduler, running_batch: object) -> tuple[Any, object]:
        calls.append(len(upstream.waiting_queue))
        if len(calls) == 1:
            return None, running_batch
        upstream.waiting_queue.sort(key=lambda req: -req.kairos.number)
        return form(upstream, running_batch)

    formed, _ = scheduler.planner.next_batch(none_at_first, scheduler, running_batch=None)
    assert scheduler.requeued == ["r1"]
    assert [req.rid for req in formed.reqs] == ["r3"]
    assert run_dry(scheduler) == ["r1"]


def test_memory_is_counted_in_pages() -> None:
    scheduler = Scheduler()
    scheduler.page_size = page = 64
    scheduler.max_total_num_tokens = 20 * page
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    scheduler.waiting_queue = [request(n, page + 1) for n in range(1, 60)]
    batch = scheduler.step()
    assert batch
    assert sum(-(-len(r.origin_input_ids) // page) for r in batch) <= 20


def test_a_starved_prompt_gets_the_memory_that_gets_free() -> None:
    """Shorter ones took it all, one after the other, for as long as they came."""
    scheduler = Scheduler()
    scheduler.max_total_num_tokens = 10 * CHUNK
    now = 1000.0
    # Until when, tokens: KV on its way to decode servers.
    sending = [(now + 0.1 * n, CHUNK // 2) for n in range(1, 13)]

    def free() -> int:
        return scheduler.free_tokens() - sum(tokens for _, tokens in sending)

    def form_in_memory(upstream: Scheduler, running_batch: object) -> tuple[Any, object]:
        everybody, left = upstream.waiting_queue, free()
        fitting = []
        for req in everybody:
            left -= len(req.origin_input_ids)
            if left < 0:
                break  # upstream goes no further
            fitting.append(req)
        upstream.waiting_queue = fitting
        formed = form(upstream, running_batch)
        upstream.waiting_queue += [req for req in everybody if req not in fitting]
        return formed

    scheduler.token_to_kv_pool_allocator.available_size = free
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1, lambda: now))
    number = 0
    while now < 1200.0:
        while len(scheduler.waiting_queue) < 2:
            number += 1
            req = request(number, 6 * CHUNK if number == 1 else CHUNK // 2, 1_000)
            req.kairos.arrival_s = now
            scheduler.waiting_queue.append(req)
        formed, _ = scheduler.planner.next_batch(form_in_memory, scheduler, running_batch=None)
        now += 0.1
        for req in formed.reqs if formed else ():
            if req.kairos.number == 1:
                assert now < 1060.0
                return
            sending.append((now + 1.2, req.extend_end))
        sending = [one for one in sending if one[0] > now]
    raise AssertionError("overtaken for ever")


def test_kv_that_a_transfer_may_still_read_is_kept() -> None:
    scheduler = preempted_behind(3 * CHUNK)
    scheduler.out_of_memory = True
    scheduler.waiting_queue.append(request(3, 100, 400))
    scheduler.step()
    assert scheduler.requeued == []


def test_a_prompt_that_does_not_fit_does_not_stop_shorter_ones_behind_it() -> None:
    scheduler = Scheduler()
    urgent, short = request(1, 4 * CHUNK, 9_000), request(2, 100)
    scheduler.waiting_queue = [urgent, short]
    scheduler.token_to_kv_pool_allocator.available_size = lambda: 2 * CHUNK
    assert [req.rid for req in scheduler.step()] == ["r2"]
