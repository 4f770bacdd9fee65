"""Prefill batches planned by urgency, carried out by upstream's own batch forming.

Upstream continues the one prompt it has started before anything else. The planner decides each
batch anew: what is not planned is hidden from the waiting queue while upstream forms the batch,
and a started prompt that is not planned is parked with the KV it has.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.kairos.prefill_scheduler import match_prefixes
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import Chunk, Profile
from kairos.policy.jobs import PrefillJob, PrefillPlan
from kairos.policy.urgency import UrgencyParams, UrgencyQueue

# Started prompts hold KV and a row until they finish. Both are bounded, so that a stream of urgent
# long prompts cannot start more than the server can finish.
MAX_STARTED = 16
MAX_STARTED_KV = 0.5  # of the server's KV tokens

# From the end of prefill to the client's first token, beyond the link's fixed cost, seconds:
# hand-over of the last chunk, admission and first emission by the decode server.
HANDOVER_S = 0.05

Original = Callable[..., tuple[Any, Any]]


@dataclass(slots=True)
class Batch:
    """What one forward shall compute.

    Attributes:
        lead: the started prompt that continues, or None.
        lead_tokens: tokens of it.
        lead_finishes: these are its last ones.
        whole: waiting requests that are prefilled from their cached prefix to the end.
        tail: one waiting request of which only a part fits, or None.
        tokens: all new tokens, in whole pages.
    """

    lead: Any = None
    lead_tokens: int = 0
    lead_finishes: bool = False
    whole: list[Any] = field(default_factory=list)
    tail: Any = None
    tokens: int = 0

    @property
    def waiting(self) -> list[Any]:
        """Requests to take from the waiting queue. The partial one ends the batch: upstream cuts
        whatever exceeds the budget."""
        return [*self.whole, self.tail] if self.tail is not None else self.whole

    @property
    def unfinished(self) -> bool:
        """It leaves a prompt unfinished; upstream can track one such prompt a batch."""
        return self.tail is not None or (self.lead is not None and not self.lead_finishes)


class PrefillPlanner:
    """Plans the prefill batches of one upstream `Scheduler`.

    Attributes:
        parked: started prompts that the scheduler does not know as its `chunked_req`.
    """

    def __init__(self, profile: Profile, scheduler: Any, clock: SharedClock) -> None:
        self.parked: list[Any] = []
        self._clock = clock
        self._model = profile.prefill
        self._page = scheduler.page_size
        self._budget = scheduler.chunked_prefill_size
        self._max_started_tokens = int(MAX_STARTED_KV * scheduler.max_total_num_tokens)
        params = UrgencyParams(tail_s=HANDOVER_S + profile.kv.fixed_s)
        self._queue = UrgencyQueue(profile.prefill, self._budget, params)
        self._jobs: dict[int, Any] = {}
        self._aborted: list[Any] = []
        self._batch: Batch | None = None
        self._busy_until_s = 0.0
        self._overtakes = 0
        self._most_parked = 0
        self._longest_plan_s = 0.0

    def next_batch(self, original: Original, scheduler: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Around `Scheduler._get_new_batch_prefill_raw`: same arguments, same results."""
        running = scheduler.chunked_req
        if running is None and not self.parked and not scheduler.waiting_queue:
            return original(scheduler, **kwargs)
        if running is not None and _pinned(running):
            return original(scheduler, **kwargs)
        begin = time.perf_counter()
        started = self.parked if running is None else [running, *self.parked]
        match_prefixes(scheduler.waiting_queue, scheduler.tree_cache)
        self._sync([*started, *scheduler.waiting_queue])
        # Under the overlap schedule this batch is formed while the previous one runs.
        start = max(self._clock.now(), self._busy_until_s)
        plan = self._queue.plan(start, self._budget, self._page)
        batch = self._choose(plan, started)
        self._longest_plan_s = max(self._longest_plan_s, time.perf_counter() - begin)
        self._overtakes += running is not None and batch.lead is not running
        formed, running_batch = self._carry_out(batch, started, original, scheduler, kwargs)
        if formed is None:
            # Out of memory or rows, most likely: upstream decides. A parked prompt must not be
            # left behind when nothing runs, so it goes first.
            self._resume_one(scheduler)
            kwargs["running_batch"] = running_batch
            formed, running_batch = original(scheduler, **kwargs)
        if formed is not None:
            self._started(formed, start)
        return formed, running_batch

    def ordered(self) -> list[Any] | None:
        """The requests being taken from the waiting queue, in order; None while nothing is."""
        return self._batch.waiting if self._batch is not None else None

    def lead_limit(self) -> int | None:
        """Tokens at most of the continued prompt in the batch being formed."""
        if self._batch is None or self._batch.lead_finishes or self._batch.lead is None:
            return None
        return self._batch.lead_tokens

    def abort(self, request: Any) -> None:
        """Remember parked prompts that an upstream `AbortReq` means; see `process_aborts`."""
        self._aborted += [
            req for req in self.parked if request.abort_all or req.rid.startswith(request.rid)
        ]

    def process_aborts(self, original: Callable[[Any], None], scheduler: Any) -> None:
        """Around `Scheduler.process_pending_chunked_abort`: have upstream end the parked prompts as
        it ends its own started one."""
        original(scheduler)
        # A client that disconnects after its abort asks for it twice.
        aborted, self._aborted = dict.fromkeys(self._aborted), []
        for req in aborted:
            kept = scheduler.chunked_req, scheduler._pending_chunked_abort_req
            scheduler.chunked_req = scheduler._pending_chunked_abort_req = req
            original(scheduler)
            scheduler.chunked_req, scheduler._pending_chunked_abort_req = kept
            self.parked.remove(req)

    def snapshot(self) -> dict[str, float]:
        """Counters for /server_info."""
        return {
            "parked": len(self.parked),
            "most_parked": self._most_parked,
            "overtakes": self._overtakes,
            "longest_plan_ms": round(self._longest_plan_s * 1e3, 3),
        }

    def _sync(self, requests: Sequence[Any]) -> None:
        """Bring the policy's queue in line with the scheduler's."""
        current = {req.kairos.number: req for req in requests}
        for number in self._jobs.keys() - current.keys():
            self._queue.remove(number)
        for number in current.keys() - self._jobs.keys():
            self._queue.add(_job(current[number]))
        self._jobs = current

    def _choose(self, plan: PrefillPlan, started: Sequence[Any]) -> Batch:
        """What of `plan` upstream can do in one batch: continue one started prompt at most, leave
        one prompt unfinished at most."""
        batch = Batch()
        for number, tokens in plan.chunks:
            req = self._jobs[number]
            finishes = tokens >= _total(req) - self._done(req, started)
            if not finishes and batch.unfinished:
                continue
            if req in started:
                if batch.lead is not None:
                    continue
                batch.lead, batch.lead_tokens, batch.lead_finishes = req, tokens, finishes
            elif finishes:
                batch.whole.append(req)
            elif self._may_start(started):
                batch.tail = req
            else:
                continue
            batch.tokens += -(-tokens // self._page) * self._page
        if batch.tokens == 0 and started:
            batch.lead, batch.lead_tokens, batch.tokens = started[0], self._budget, self._budget
        return batch

    def _done(self, req: Any, started: Sequence[Any]) -> int:
        return req.extend_end if req in started else _cached(req)

    def _may_start(self, started: Sequence[Any]) -> bool:
        """Whether one more prompt may be left unfinished."""
        held = sum(req.extend_end for req in started)
        return len(started) < MAX_STARTED and held + self._budget <= self._max_started_tokens

    def _carry_out(
        self,
        batch: Batch,
        started: Sequence[Any],
        original: Original,
        scheduler: Any,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any]:
        """Let upstream form `batch`, showing it only what is planned."""
        chosen = set(batch.waiting)
        hidden = [req for req in scheduler.waiting_queue if req not in chosen]
        scheduler.waiting_queue = batch.waiting
        scheduler.chunked_req = batch.lead
        self.parked = [req for req in started if req is not batch.lead]
        self._most_parked = max(self._most_parked, len(self.parked))
        scheduler.chunked_prefill_size = max(batch.tokens, self._page)
        self._batch = batch
        try:
            return original(scheduler, **kwargs)
        finally:
            self._batch = None
            scheduler.chunked_prefill_size = self._budget
            scheduler.waiting_queue = [*scheduler.waiting_queue, *hidden]

    def _resume_one(self, scheduler: Any) -> None:
        if scheduler.chunked_req is None and self.parked:
            scheduler.chunked_req = self.parked.pop(0)

    def _started(self, formed: Any, start: float) -> None:
        """Take in what upstream put into the batch, which may be less than planned."""
        chunks = [Chunk(req.prefix_len, req.extend_end - req.prefix_len) for req in formed.reqs]
        self._busy_until_s = start + self._model.batch_s(chunks)
        self._clock.decided(*(req.kairos.number for req in formed.reqs))
        for req in formed.reqs:
            number = req.kairos.number
            if number not in self._jobs:
                continue
            if req.extend_end >= _total(req):
                self._queue.remove(number)
                del self._jobs[number]
            else:
                self._queue.progress(number, req.extend_end)


def planning_refusal(scheduler: Any) -> str | None:
    """Why this scheduler's prefill batches cannot be planned; None if they can."""
    for reason, present in (
        ("not a prefill server", scheduler.disaggregation_mode.value != "prefill"),
        ("chunked prefill is off", not scheduler.chunked_prefill_size),
        ("priority scheduling", scheduler.enable_priority_scheduling),
        ("LoRA", scheduler.enable_lora),
        ("hierarchical cache", scheduler.enable_hierarchical_cache),
        ("hybrid sliding-window attention", scheduler.is_hybrid_swa),
        ("speculative decoding", not scheduler.spec_algorithm.is_none()),
        ("mixed chunks", scheduler.is_mixed_chunk),
        ("a prefill delayer", scheduler.prefill_delayer is not None),
        ("diffusion model", scheduler.dllm_config is not None),
        ("a state-space model", hasattr(scheduler.req_to_token_pool, "mamba_allocator")),
    ):
        if present:
            return reason
    return None


def _pinned(req: Any) -> bool:
    """A prompt that upstream must go on with: its result handler would requeue it, or end it."""
    return bool(req.pending_bootstrap or req.finished() or req.to_finish is not None)


def _job(req: Any) -> PrefillJob:
    return PrefillJob(
        id=req.kairos.number,
        arrival_s=req.kairos.arrival_s,
        deadline_s=req.kairos.ttft_deadline_s,
        total_tokens=_total(req),
        done_tokens=_cached(req),
    )


def _total(req: Any) -> int:
    return len(req.origin_input_ids) + len(req.output_ids)


def _cached(req: Any) -> int:
    return min(req.num_matched_prefix_tokens or 0, _total(req) - 1)
