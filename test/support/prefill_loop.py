"""A prefill scheduler's batch forming, with Kairos' planner in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang.srt.kairos import upstream
from sglang.srt.kairos.prefill.batch_forming import FormedBatch
from sglang.srt.kairos.prefill.planner import PrefillPlanner
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from support.fake_req import FakeReq, fake_req
from support.fake_scheduler import (
    FakeAdapters,
    FakeModelRunner,
    FakePolicy,
    FakePool,
    FakeServerArgs,
    FakeWorker,
)

PROFILE = load_profile("tiny-fast")
CHUNK = PROFILE.limits.chunk_tokens
# Less than the prompts here take; not so little that they would count as starved at once.
INFEASIBLE_MS = 100


@dataclass
class FakeBatch:
    """Stands in for upstream's `ScheduleBatch` of a prefill server."""

    reqs: Sequence[FakeReq] = ()
    forward_iter: int = 0
    launch_ts: float = 0.0
    after_idle_gap: bool = False


class FakeKvPool:
    """Stands in for upstream's KV allocator; `free_tokens` returns the free tokens."""

    def __init__(self, free_tokens: Callable[[], int]) -> None:
        self.available_size = free_tokens
        self.page_size = 1


class PrefillLoop:
    """Forms batches by upstream's rules: the started prompt first, then the queue in order, cut at
    the budget; one unfinished prompt at most, or upstream's assertion."""

    def __init__(
        self,
        adapters: int | None = None,
        clock: SharedClock | None = None,
        page_size: int = 1,
        max_total_num_tokens: int = 200_000,
        allocation_policy: str = "early",
    ) -> None:
        """`adapters`: of one batch; None without LoRA."""
        self.page_size = page_size
        self.enable_overlap = True
        self.enable_lora = adapters is not None
        self.adapters = FakeAdapters(adapters)
        self.tp_worker = FakeWorker(FakeModelRunner(self.adapters))
        self.forward_ct = 0
        self.policy = FakePolicy()
        self.server_args = FakeServerArgs(disaggregation_decode_allocation_policy=allocation_policy)
        self.chunked_prefill_size: int | None = CHUNK
        self.max_total_num_tokens = max_total_num_tokens
        self.tree_cache = FakePool()
        self.token_to_kv_pool_allocator = FakeKvPool(self.free_tokens)
        self.waiting_queue: list[upstream.Req] = []
        self.chunked_req: upstream.Req | None = None
        self._pending_chunked_abort_req: upstream.Req | None = None
        self.out_of_memory = False
        self.ended: list[str] = []
        self.requeued: list[str] = []
        self.planner = PrefillPlanner(PROFILE, self, clock or SharedClock(1))

    def started(self) -> list[FakeReq]:
        return [as_fake(req) for req in self.planner.preempted.started(self)]

    def free_tokens(self) -> int:
        return self.max_total_num_tokens - sum(req.extend_end or 0 for req in self.started())

    def optimistic_release_and_requeue(self, req: upstream.Req) -> None:
        """Upstream's: the KV is given back, the request waits again."""
        fake = as_fake(req)
        fake.prefix_len, fake.extend_end = 0, None
        self.requeued.append(req.rid)
        self.waiting_queue.insert(0, req)

    def end_aborted(self) -> None:
        """Upstream's `process_pending_chunked_abort`."""
        if (req := self._pending_chunked_abort_req) is not None:
            self.ended.append(req.rid)
            self.chunked_req = self._pending_chunked_abort_req = None

    def step(
        self, form: Callable[["PrefillLoop"], FakeBatch | None] | None = None
    ) -> list[FakeReq]:
        """One pass of batch forming by `form`, upstream's by default; the requests of its batch."""
        if self.chunked_req is not None:  # upstream publishes the last chunk first
            publish(self.chunked_req)
        for req in self.planner.preempted.reqs:
            assert req.prefix_len == req.extend_end

        def formed(running_batch: object) -> FormedBatch:
            return (form or form_batch)(self), running_batch

        batch, _ = self.planner.next_batch(formed, self, None)
        assert self.free_tokens() >= 0, "upstream ends the process here"
        return [] if batch is None else [as_fake(req) for req in batch.reqs]


def as_fake(req: upstream.Req) -> FakeReq:
    """The stand-in behind a request of the planner."""
    assert isinstance(req, FakeReq)
    return req


def publish(req: upstream.Req) -> None:
    """Upstream's `process_prefill_chunk`: computed tokens are in the cache."""
    as_fake(req).prefix_len = req.extend_end or 0


def form_batch(loop: PrefillLoop) -> FakeBatch | None:
    """Upstream's `_get_new_batch_prefill_raw`."""
    budget = loop.chunked_prefill_size or 0
    assert 0 < budget <= CHUNK
    taken: list[FakeReq] = []
    if loop.chunked_req is not None:
        continued = as_fake(loop.chunked_req)
        publish(continued)
        limit = loop.planner.forming.continued_limit()
        tokens = min(budget, len(continued.origin_input_ids) - continued.prefix_len)
        tokens = min(tokens, limit or budget)
        continued.extend_end = continued.prefix_len + tokens
        budget -= tokens
        taken.append(continued)
        if continued.extend_end == len(continued.origin_input_ids):
            loop.chunked_req = None
    for waiting in loop.waiting_queue:
        req = as_fake(waiting)
        if budget == 0 or loop.out_of_memory:
            break
        adapters = {req.lora_id, *(other.lora_id for other in taken)}
        if not loop.adapters.validate_lora_batch(adapters):
            continue
        req.prefix_len = req.num_matched_prefix_tokens
        tokens = min(budget, len(req.origin_input_ids) - req.prefix_len)
        if req.prefix_len + tokens < len(req.origin_input_ids):
            assert loop.chunked_req is None, "two unfinished prompts"
            loop.chunked_req = req
        req.extend_end = req.prefix_len + tokens
        budget -= tokens
        taken.append(req)
    loop.waiting_queue = [req for req in loop.waiting_queue if req not in taken]
    return FakeBatch(taken) if taken else None


def is_complete(req: FakeReq) -> bool:
    """All of its prompt is computed."""
    return req.extend_end == len(req.origin_input_ids)


def run_dry(loop: PrefillLoop, limit: int = 2000) -> list[str]:
    """Step until nothing is left; rids in order of completion."""
    finished = []
    for _ in range(limit):
        batch = loop.step()
        finished += [req.rid for req in batch if is_complete(req)]
        if not (loop.waiting_queue or loop.started()):
            return finished
        assert batch, "work is left and nothing runs"
    raise AssertionError("not finished")


def preempted_behind(urgent_tokens: int) -> PrefillLoop:
    """A loop whose long prompt r1 is preempted behind r2."""
    loop = PrefillLoop()
    loop.waiting_queue = [fake_req(1, 10 * CHUNK, ttft_ms=INFEASIBLE_MS)]
    loop.step()
    loop.waiting_queue.append(fake_req(2, urgent_tokens))
    loop.step()
    return loop


# Checked by mypy.
_SCHEDULER: type[upstream.PlanningScheduler] = PrefillLoop
_BATCH: type[upstream.PrefillBatch] = FakeBatch
