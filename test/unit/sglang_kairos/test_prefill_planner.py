"""What the planner lets upstream do in one batch, against a stand-in for upstream's scheduler."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.kairos import prefill_planner
from sglang.srt.kairos.prefill_planner import MAX_STARTED, PrefillPlanner
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.replay.arms import arm_spec
from kairos.slo import Slo
from support.fake_scheduler import fake_scheduler

PROFILE = load_profile("tiny-fast")
CHUNK = PROFILE.limits.chunk_tokens
# Less than the prompts here take; not so little that they would count as starved at once.
HOPELESS_MS = 100


@dataclass(eq=False)
class Req:
    """The fields of an upstream request that the planner reads."""

    rid: str
    origin_input_ids: list[int]
    kairos: RequestSlo
    num_matched_prefix_tokens: int = 0
    output_ids: list[int] = field(default_factory=list)
    prefix_len: int = 0
    extend_end: int | None = 0
    pending_bootstrap: bool = False
    inflight_middle_chunks: int = 0
    priority: int | None = None
    to_finish: object = None
    lora_id: str | None = None

    def finished(self) -> bool:
        return False


class Scheduler:
    """Forms batches by upstream's rules: the started prompt first, then the queue in order, cut at
    the budget; one unfinished prompt at most, or upstream's assertion."""

    def __init__(self, adapters: int | None = None) -> None:
        """`adapters`: of one batch; None without LoRA."""
        self.page_size = 1
        self.enable_overlap = True
        self.enable_lora = adapters is not None
        self.adapters_fit = lambda ids: adapters is None or len(ids) <= adapters
        manager = SimpleNamespace(validate_lora_batch=self.adapters_fit)
        self.tp_worker = SimpleNamespace(model_runner=SimpleNamespace(lora_manager=manager))
        self.forward_ct = 0
        self.policy = SimpleNamespace(enable_priority_scheduling=False, priority_sign=-1)
        self.server_args = SimpleNamespace(disaggregation_decode_allocation_policy="early")
        self.chunked_prefill_size = CHUNK
        self.max_total_num_tokens = 200_000
        self.tree_cache = SimpleNamespace(evictable_size=lambda: 0)
        self.token_to_kv_pool_allocator = SimpleNamespace(available_size=self.free_tokens)
        self.waiting_queue: list[Req] = []
        self.chunked_req: Req | None = None
        self._pending_chunked_abort_req: Req | None = None
        self.planner = PrefillPlanner(PROFILE, self, SharedClock(1))
        self.out_of_memory = False
        self.ended: list[str] = []
        self.requeued: list[str] = []

    def started(self) -> list[Req]:
        return [req for req in (*self.planner.parked, self.chunked_req) if req is not None]

    def free_tokens(self) -> int:
        return self.max_total_num_tokens - sum(req.extend_end for req in self.started())

    def optimistic_release_and_requeue(self, req: Req) -> None:
        """Upstream's: the KV is given back, the request waits again."""
        req.prefix_len, req.extend_end = 0, None
        self.requeued.append(req.rid)
        self.waiting_queue.insert(0, req)

    def step(self) -> list[Req]:
        if self.chunked_req is not None:  # upstream publishes the last chunk first
            self.chunked_req.prefix_len = self.chunked_req.extend_end
        for req in self.planner.parked:
            assert req.prefix_len == req.extend_end
        batch, _ = self.planner.next_batch(form, self, running_batch=None)
        assert self.free_tokens() >= 0, "upstream ends the process here"
        return [] if batch is None else batch.reqs


def form(scheduler: Scheduler, running_batch: object) -> tuple[Any, object]:
    budget = scheduler.chunked_prefill_size
    assert 0 < budget <= CHUNK
    taken: list[Req] = []
    if (lead := scheduler.chunked_req) is not None:
        lead.prefix_len = lead.extend_end
        limit = scheduler.planner.lead_limit()
        tokens = min(budget, len(lead.origin_input_ids) - lead.prefix_len, limit or budget)
        lead.extend_end = lead.prefix_len + tokens
        budget -= tokens
        taken.append(lead)
        if lead.extend_end == len(lead.origin_input_ids):
            scheduler.chunked_req = None
    for req in scheduler.waiting_queue:
        if budget == 0 or scheduler.out_of_memory:
            break
        if not scheduler.adapters_fit({req.lora_id, *(other.lora_id for other in taken)}):
            continue
        req.prefix_len = req.num_matched_prefix_tokens
        tokens = min(budget, len(req.origin_input_ids) - req.prefix_len)
        if req.prefix_len + tokens < len(req.origin_input_ids):
            assert scheduler.chunked_req is None, "two unfinished prompts"
            scheduler.chunked_req = req
        req.extend_end = req.prefix_len + tokens
        budget -= tokens
        taken.append(req)
    scheduler.waiting_queue = [req for req in scheduler.waiting_queue if req not in taken]
    return (SimpleNamespace(reqs=taken) if taken else None), running_batch


@pytest.fixture(autouse=True)
def no_radix_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill_planner, "match_prefixes", lambda *_: [])


def request(number: int, tokens: int, ttft_ms: float = 60_000, cached: int = 0) -> Req:
    slo = RequestSlo(Slo(ttft_ms, 50), time.monotonic(), number)
    return Req(f"r{number}", [0] * tokens, slo, min(cached, tokens - 1))


def run_dry(scheduler: Scheduler, limit: int = 2000) -> list[str]:
    """Step until nothing is left; rids in order of completion."""
    finished = []
    for _ in range(limit):
        batch = scheduler.step()
        finished += [r.rid for r in batch if r.extend_end == len(r.origin_input_ids)]
        if not (scheduler.waiting_queue or scheduler.chunked_req or scheduler.planner.parked):
            return finished
        assert batch, "work is left and nothing runs"
    raise AssertionError("not finished")


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
    assert [req.rid for req in scheduler.planner.parked] == ["r1"]
    assert run_dry(scheduler) == ["r2", "r1"]


def test_started_prompts_are_bounded() -> None:
    scheduler = Scheduler()
    scheduler.max_total_num_tokens = 10**9
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    for number in range(1, 3 * MAX_STARTED):
        # Each more urgent than the one before, and none finished by one batch.
        scheduler.waiting_queue.append(request(number, 5 * CHUNK, 900_000 - 10_000 * number))
        scheduler.step()
        started = [*scheduler.planner.parked, scheduler.chunked_req]
        assert len([req for req in started if req]) <= MAX_STARTED
    run_dry(scheduler)


def test_kv_held_by_started_prompts_is_bounded() -> None:
    scheduler = Scheduler()
    scheduler.max_total_num_tokens = 8 * CHUNK
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    for number in range(1, 12):
        scheduler.waiting_queue.append(request(number, 3 * CHUNK, 900_000 - 10_000 * number))
        scheduler.step()
        parked = sum(req.extend_end for req in scheduler.planner.parked)
        assert parked <= scheduler.max_total_num_tokens / 2
    run_dry(scheduler)


def test_late_prompts_of_like_slo_are_finished_one_after_the_other() -> None:
    """They took turns slice by slice, and together grew beyond the memory."""
    scheduler = Scheduler()
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    for number in range(1, 6):
        scheduler.waiting_queue.append(request(number, 49_000, HOPELESS_MS))
        scheduler.step()
    run_dry(scheduler)
    assert scheduler.planner.snapshot()["parks"] <= 5


def test_nobody_is_started_into_the_memory_of_those_that_are() -> None:
    scheduler = Scheduler()
    for number in range(1, 12):
        scheduler.waiting_queue.append(request(number, 49_000, 900_000 - 10_000 * number))
        scheduler.step()
        scheduler.step()
        owed = sum(len(r.origin_input_ids) - r.extend_end for r in scheduler.started())
        assert owed <= scheduler.free_tokens()
    assert len(run_dry(scheduler)) == 11


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


def test_pages_never_stretch_a_batch_beyond_the_chunk() -> None:
    scheduler = Scheduler()
    scheduler.page_size = 64
    scheduler.planner = PrefillPlanner(PROFILE, scheduler, SharedClock(1))
    scheduler.waiting_queue = [request(n, 65) for n in range(1, 60)]
    for _ in range(4):
        batch = scheduler.step()
        assert sum(-(-r.extend_end // 64) * 64 for r in batch) <= CHUNK


def test_out_of_memory_for_the_urgent_one_lets_the_parked_one_finish() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 4 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.out_of_memory = True
    scheduler.waiting_queue.append(request(2, 100))
    for _ in range(20):
        assert scheduler.step(), "the parked prompt must go on, it is what frees memory"
        if scheduler.chunked_req is None:
            break
    assert scheduler.chunked_req is None
    assert scheduler.planner.parked == []
    scheduler.out_of_memory = False
    assert run_dry(scheduler) == ["r2"]


def parked_behind(urgent_tokens: int) -> Scheduler:
    """A scheduler whose long prompt r1 is parked behind r2."""
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 10 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.waiting_queue.append(request(2, urgent_tokens))
    scheduler.step()
    return scheduler


def test_a_prompt_that_upstream_is_about_to_end_is_not_parked() -> None:
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 10 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.chunked_req.to_finish = "abort"
    scheduler.waiting_queue.append(request(2, 3 * CHUNK))
    scheduler.step()
    assert scheduler.planner.parked == []


def test_the_result_of_a_parked_prompt_is_that_of_a_started_one() -> None:
    scheduler = parked_behind(3 * CHUNK)
    (long,) = scheduler.planner.parked
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


def test_kv_is_given_back_when_memory_is_short_the_longest_slack_first() -> None:
    scheduler = parked_behind(3 * CHUNK)
    scheduler.waiting_queue.append(request(3, 3 * CHUNK, 5_000))
    scheduler.step()
    assert {req.rid for req in scheduler.planner.parked} == {"r1", "r2"}
    for req in scheduler.planner.parked:
        req.pending_bootstrap = True
    scheduler.waiting_queue.append(request(4, 100, 400))
    scheduler.planner._give_back(scheduler, [request(5, scheduler.max_total_num_tokens + 1)])
    assert scheduler.requeued == []  # for nothing
    scheduler.planner._give_back(scheduler, scheduler.waiting_queue[-1:])
    assert scheduler.requeued == ["r2"]
    assert sorted(run_dry(scheduler)) == ["r1", "r2", "r3", "r4"]


def test_a_batch_is_formed_after_kv_was_given_back() -> None:
    """Upstream forgets how far a prompt was that it puts back into the queue."""
    scheduler = parked_behind(CHUNK)
    scheduler.planner.parked[0].pending_bootstrap = True
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
    scheduler = parked_behind(3 * CHUNK)
    scheduler.out_of_memory = True
    scheduler.waiting_queue.append(request(3, 100, 400))
    scheduler.step()
    assert scheduler.requeued == []


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
    scheduler = parked_behind(3 * CHUNK)
    run_dry(scheduler)
    figures = scheduler.planner.snapshot()
    assert figures["parks"] == 1
    assert figures["overtakes"] == 1
    assert figures["parked"] == 0


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
    assert scheduler.planner.parked == []
    assert scheduler.chunked_req is running
    assert run_dry(scheduler) == ["r2"]


def test_the_simulation_of_an_arm_plans_as_the_servers_do() -> None:
    """The library, which knows no server, repeats their constants."""
    budget = PROFILE.limits.chunk_tokens
    transfer_s = PROFILE.kv.transfer_s(budget)
    simulated = arm_spec("kairos", "tiny-fast").settings(transfer_s)
    assert simulated is not None
    assert simulated.urgency.slice_s == prefill_planner.SLICE_S
    assert simulated.urgency.tail_s == prefill_planner.HANDOVER_S + transfer_s


def test_deadlines_leave_room_for_the_longer_handover_after_prefill() -> None:
    early, after = Scheduler(), Scheduler()
    after.server_args.disaggregation_decode_allocation_policy = "prefill_complete"
    after.planner = PrefillPlanner(PROFILE, after, SharedClock(1))
    tails = [one.planner._queue._params.tail_s for one in (early, after)]
    longer = prefill_planner.HANDOVER_AFTER_PREFILL_S - prefill_planner.HANDOVER_S
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


def test_a_prompt_that_does_not_fit_does_not_stop_shorter_ones_behind_it() -> None:
    scheduler = Scheduler()
    urgent, short = request(1, 4 * CHUNK, 9_000), request(2, 100)
    scheduler.waiting_queue = [urgent, short]
    scheduler.token_to_kv_pool_allocator.available_size = lambda: 2 * CHUNK
    assert [req.rid for req in scheduler.step()] == ["r2"]


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
