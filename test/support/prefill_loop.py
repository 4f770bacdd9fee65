"""A prefill scheduler's batch forming, with Kairos' planner in it."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from sglang.srt.kairos.prefill_planner import PrefillPlanner
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.slo import Slo

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
        return [req for req in (*self.planner.preempted, self.chunked_req) if req is not None]

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
        for req in self.planner.preempted:
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
        limit = scheduler.planner.continued_limit()
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


def request(number: int, tokens: int, ttft_ms: float = 60_000, cached: int = 0) -> Req:
    slo = RequestSlo(Slo(ttft_ms, 50), time.monotonic(), number)
    return Req(f"r{number}", [0] * tokens, slo, min(cached, tokens - 1))


def run_dry(scheduler: Scheduler, limit: int = 2000) -> list[str]:
    """Step until nothing is left; rids in order of completion."""
    finished = []
    for _ in range(limit):
        batch = scheduler.step()
        finished += [r.rid for r in batch if r.extend_end == len(r.origin_input_ids)]
        if not (scheduler.waiting_queue or scheduler.chunked_req or scheduler.planner.preempted):
            return finished
        assert batch, "work is left and nothing runs"
    raise AssertionError("not finished")


def preempted_behind(urgent_tokens: int) -> Scheduler:
    """A scheduler whose long prompt r1 is preempted behind r2."""
    scheduler = Scheduler()
    scheduler.waiting_queue = [request(1, 10 * CHUNK, ttft_ms=HOPELESS_MS)]
    scheduler.step()
    scheduler.waiting_queue.append(request(2, urgent_tokens))
    scheduler.step()
    return scheduler
