"""Prefill batches planned by urgency, carried out by upstream's own batch forming.

Upstream continues the one prompt it has started before anything else. The planner decides each
batch anew: what is not planned is hidden from the waiting queue while upstream forms the batch,
and a started prompt that is not planned is preempted with the KV it has.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sglang.srt.kairos.kv_budget import KvBudget, pages
from sglang.srt.kairos.planned_batch import (
    PlannedBatch,
    cached_tokens,
    must_continue,
    total_tokens,
)
from sglang.srt.kairos.prefill_jobs import PrefillJobs
from sglang.srt.kairos.prefill_observer import PrefillObserver
from sglang.srt.kairos.prefill_scheduler import forget_matches, match_prefixes, starved
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import Chunk, Profile
from kairos.policy.engine_defaults import HANDOVER_AFTER_PREFILL_S, HANDOVER_S, prefill_urgency
from kairos.policy.jobs import PrefillPlan
from kairos.policy.priorities import PriorityQueues

# Started prompts hold KV and a row until they finish. Both are bounded, so that a stream of urgent
# long prompts cannot start more than the server can finish.
MAX_STARTED = 16
MAX_STARTED_KV = 0.5  # of the server's KV tokens

Original = Callable[..., tuple[Any, Any]]


class PrefillPlanner:
    """Plans the prefill batches of one upstream `Scheduler`.

    Attributes:
        preempted: started prompts that the scheduler does not know as its `chunked_req`.
        observer: measures the batches and learns from them.
    """

    def __init__(
        self,
        profile: Profile,
        scheduler: Any,
        clock: SharedClock,
        state_dir: str | None = None,
    ) -> None:
        self.preempted: list[Any] = []
        self._clock = clock
        self._overlap = scheduler.enable_overlap
        self.observer = PrefillObserver(profile, clock, self._overlap, state_dir)
        self._page = scheduler.page_size
        self._budget = scheduler.chunked_prefill_size
        self._adapters = (
            scheduler.tp_worker.model_runner.lora_manager if scheduler.enable_lora else None
        )
        self._max_started_tokens = int(MAX_STARTED_KV * scheduler.max_total_num_tokens)
        policy = scheduler.server_args.disaggregation_decode_allocation_policy
        handover_s = HANDOVER_S if policy == "early" else HANDOVER_AFTER_PREFILL_S
        params = prefill_urgency(profile.kv.transfer_s(self._budget), handover_s)
        self._queue = PriorityQueues(profile.prefill, self._budget, params)
        self._jobs = PrefillJobs(self._queue)
        self._unmatched: list[Any] = []  # waiting ones, not looked up in the radix cache
        self._aborted: list[Any] = []
        self._computed: list[Any] = []  # since the last pass
        self._batch: PlannedBatch | None = None
        self._reserved_number: int | None = None  # of the prompt that the next free memory is for
        self._max_tokens = scheduler.max_total_num_tokens
        self._busy_until_s = 0.0
        self._in_flight_s = 0.0
        self._overtakes = 0
        self._preemptions = 0
        self._recomputed = 0
        self._max_preempted = 0
        self._longest_plan_s = 0.0

    def next_batch(self, original: Original, scheduler: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Around `Scheduler._get_new_batch_prefill_raw`: same arguments, same results."""
        running = scheduler.chunked_req
        computed, self._computed = self._computed, []
        if running is None and not self.preempted and not scheduler.waiting_queue:
            if self._jobs:  # aborted ones, which would be kept until the next plan
                self._jobs.clear()
                self._unmatched.clear()
            return original(scheduler, **kwargs)
        if running is not None and must_continue(running):
            return original(scheduler, **kwargs)
        begin = time.perf_counter()
        started = self.preempted if running is None else [running, *self.preempted]
        fresh = self._jobs.sync(scheduler.waiting_queue, started, scheduler.policy)
        self._match([*fresh, *forget_matches(scheduler.waiting_queue, computed)], scheduler)
        self._queue.predict_with(*self.observer.model())
        start = self._start_s()
        plan = self._queue.plan(start, self._budget, self._page)
        reserved_for = self._reserved_for()
        batch = self._alone(reserved_for, started, scheduler) or self._choose(plan, started)
        self._longest_plan_s = max(self._longest_plan_s, time.perf_counter() - begin)
        wanted = batch.waiting[:1]
        formed, running_batch = self._carry_out(
            batch, started, reserved_for, original, scheduler, kwargs
        )
        if formed is None:
            # Out of memory or rows, most likely: upstream decides. A preempted prompt must not be
            # left behind when nothing runs, so it goes first.
            self._give_back(scheduler, wanted)
            self._resume_one(scheduler)
            kwargs["running_batch"] = running_batch
            formed, running_batch = self._upstreams_choice(
                reserved_for, original, scheduler, kwargs
            )
        self._preemptions += running is not None and running in self.preempted
        if formed is not None:
            self._started(formed, started, start, scheduler.forward_ct + 1)
        self._jobs.record_queue(scheduler.waiting_queue)
        return formed, running_batch

    def has_nothing(self) -> bool:
        """No prompt waits and none is started, as of the last plan."""
        return not self._jobs

    def ordered(self) -> list[Any] | None:
        """The requests being taken from the waiting queue, in order; None while nothing is."""
        return self._batch.waiting if self._batch is not None else None

    def continued_limit(self) -> int | None:
        """Tokens at most of the continued prompt in the batch being formed."""
        if self._batch is None or self._batch.continued_finishes or self._batch.continued is None:
            return None
        return self._batch.continued_tokens

    def abort(self, request: Any) -> None:
        """Remember preempted prompts that an upstream `AbortReq` means; see `process_aborts`."""
        self._aborted += [
            req for req in self.preempted if request.abort_all or req.rid.startswith(request.rid)
        ]

    def process_aborts(self, original: Callable[[Any], None], scheduler: Any) -> None:
        """Around `Scheduler.process_pending_chunked_abort`: have upstream end the preempted
        prompts as it ends its own started one."""
        original(scheduler)
        # A client that disconnects after its abort asks for it twice.
        aborted, self._aborted = dict.fromkeys(self._aborted), []
        for req in aborted:
            kept = scheduler.chunked_req, scheduler._pending_chunked_abort_req
            scheduler.chunked_req = scheduler._pending_chunked_abort_req = req
            original(scheduler)
            scheduler.chunked_req, scheduler._pending_chunked_abort_req = kept
            self.preempted.remove(req)

    def process_result(
        self, original: Callable[..., None], scheduler: Any, batch: Any, result: Any
    ) -> None:
        """Around `Scheduler.process_batch_result_disagg_prefill`. A prompt that is still waiting
        for its decode server is taken for one that upstream gave up unless it is `chunked_req`."""
        # The batch's own `chunked_req` is not in the copy of it that results come with.
        self._computed += batch.reqs
        preempted = next((req for req in self.preempted if req in batch.reqs), None)
        if preempted is None:
            return original(scheduler, batch, result)
        kept, scheduler.chunked_req = scheduler.chunked_req, preempted
        try:
            return original(scheduler, batch, result)
        finally:
            scheduler.chunked_req = kept

    def snapshot(self) -> dict[str, Any]:
        """Counters for /server_info.

        preempted: started prompts set aside now; parks: how often one was set aside; overtakes:
        prompts that were through before one that had started earlier; demotions: prompts given up
        that had been going to be on time; starvation_grants: batches for one that waited too long;
        recomputed: preempted prompts whose KV was given back.
        """
        return {
            "preempted": len(self.preempted),
            "max_preempted": self._max_preempted,
            "preemptions": self._preemptions,
            "overtakes": self._overtakes,
            "demotions": self._queue.demotions,
            "starvation_grants": self._queue.grants,
            "recomputed": self._recomputed,
            "longest_plan_ms": round(self._longest_plan_s * 1e3, 3),
            **self.observer.snapshot(),
        }

    def _start_s(self) -> float:
        """When the batch to be planned will start. Under the overlap schedule that is the predicted
        end of the one in flight, which itself has started by now."""
        now = self._clock.now()
        if not self._overlap:
            return now
        return min(max(now, self._busy_until_s), now + self._in_flight_s)

    def _match(self, more: Sequence[Any], scheduler: Any) -> None:
        """Look up `more` and those left over from earlier passes, as many as a pass may."""
        candidates = [*self._unmatched, *more]
        self._unmatched = [req for req in candidates if self._jobs.waits(req.kairos.number)]
        for req in match_prefixes(self._unmatched, scheduler.tree_cache):
            self._queue.progress(req.kairos.number, cached_tokens(req))
        self._unmatched = [req for req in self._unmatched if not req.kairos.matched]

    def _choose(self, plan: PrefillPlan, started: Sequence[Any]) -> PlannedBatch:
        """What of `plan` upstream can do in one batch: continue one started prompt at most, leave
        one prompt unfinished at most, hold so many LoRA adapters."""
        batch = PlannedBatch()
        adapters: set[str | None] = set()
        for number, tokens in plan.chunks:
            req = self._jobs[number]
            padded = pages(tokens, self._page)
            if batch.tokens and batch.tokens + padded > self._budget:
                continue
            finishes = tokens >= total_tokens(req) - self._done(req, started)
            if not finishes and batch.unfinished:
                continue
            if not self._adapters_fit(adapters | {req.lora_id}):
                continue
            if req in started:
                if batch.continued is not None:
                    continue
                batch.continued, batch.continued_tokens, batch.continued_finishes = (
                    req,
                    tokens,
                    finishes,
                )
            elif finishes:
                batch.complete.append(req)
            elif self._may_start(started):
                batch.partial = req
            else:
                continue
            batch.tokens += padded
            adapters.add(req.lora_id)
        if batch.tokens == 0 and started:
            batch.continue_with(started[0], self._budget)
        return batch

    def _alone(
        self, reserved_for: Any | None, started: Sequence[Any], scheduler: Any
    ) -> PlannedBatch | None:
        """A batch of the prompt that memory was kept for, once there is enough."""
        if reserved_for is None or not KvBudget(scheduler, started).take(reserved_for):
            return None
        rest = total_tokens(reserved_for) - cached_tokens(reserved_for)
        if rest <= self._budget:
            return PlannedBatch(complete=[reserved_for], tokens=pages(rest, self._page))
        return (
            PlannedBatch(partial=reserved_for, tokens=self._budget)
            if self._may_start(started)
            else None
        )

    def _adapters_fit(self, adapters: set[str | None]) -> bool:
        """Upstream passes over who does not fit beside the continued prompt, however urgent."""
        return self._adapters is None or self._adapters.validate_lora_batch(adapters)

    def _done(self, req: Any, started: Sequence[Any]) -> int:
        return req.extend_end if req in started else cached_tokens(req)

    def _may_start(self, started: Sequence[Any]) -> bool:
        """Whether one more prompt may be left unfinished."""
        held = sum(req.extend_end for req in started)
        return len(started) < MAX_STARTED and held + self._budget <= self._max_started_tokens

    def _carry_out(
        self,
        batch: PlannedBatch,
        started: Sequence[Any],
        reserved_for: Any | None,
        original: Original,
        scheduler: Any,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any]:
        """Let upstream form `batch`, showing it only what is planned and has memory to the end."""
        budget = KvBudget(scheduler, started, reserved_for)
        planned = batch.waiting
        fitting = [req for req in planned if budget.take(req)]
        batch.complete = [req for req in batch.complete if req in fitting]
        if batch.partial not in fitting:
            batch.partial = None
        if reserved_for is None:
            self._reserve_for(req for req in planned if req not in fitting)
        elif started and not fitting and batch.continued is None:
            batch.continue_with(started[0], self._budget)
        chosen = set(batch.waiting)
        hidden = [req for req in scheduler.waiting_queue if req not in chosen]
        scheduler.waiting_queue = batch.waiting
        scheduler.chunked_req = batch.continued
        self.preempted = [req for req in started if req is not batch.continued]
        self._max_preempted = max(self._max_preempted, len(self.preempted))
        scheduler.chunked_prefill_size = min(max(batch.tokens, self._page), self._budget)
        self._batch = batch
        try:
            return original(scheduler, **kwargs)
        finally:
            self._batch = None
            scheduler.chunked_prefill_size = self._budget
            scheduler.waiting_queue = [*scheduler.waiting_queue, *hidden]

    def _upstreams_choice(
        self, reserved_for: Any | None, original: Original, scheduler: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Upstream forms a batch by itself, of what does not take the memory of started prompts."""
        started = [req for req in (scheduler.chunked_req, *self.preempted) if req is not None]
        budget = KvBudget(scheduler, started, reserved_for)
        everybody = scheduler.waiting_queue
        bounded = bool(started) or reserved_for is not None
        fitting = [req for req in everybody if budget.take(req)]
        if not fitting and not bounded:
            fitting = everybody  # nothing runs: upstream decides what fits it at all
        shown = set(fitting)
        hidden = [req for req in everybody if req not in shown]
        scheduler.waiting_queue = fitting
        try:
            return original(scheduler, **kwargs)
        finally:
            scheduler.waiting_queue = [*scheduler.waiting_queue, *hidden]

    def _reserved_for(self) -> Any | None:
        """The waiting request that the next free memory is for, if one is starved of it."""
        number = self._reserved_number
        if number is None or not self._jobs.waits(number):
            self._reserved_number = None
            return None
        return self._jobs[number]

    def _reserve_for(self, unfitting: Iterable[Any]) -> None:
        """Shorter prompts would take all memory that gets free, one after the other, for as long
        as they come: one that has waited for many times its SLO gets it first."""
        now = self._clock.now()
        most = self._max_tokens - self._page
        self._reserved_number = next(
            (
                req.kairos.number
                for req in unfitting
                if starved(req, now) and pages(total_tokens(req), self._page) <= most
            ),
            None,
        )

    def _give_back(self, scheduler: Any, wanted: Sequence[Any]) -> None:
        """Free the KV of the preempted prompt with the longest slack; it will be computed again.

        Only while nothing of it has been sent: a transfer may still read what was sent, and the
        scheduler receives no transfer-completion event. And only if freeing all such prompts would
        make room for the first of `wanted`, the waiting requests that were planned."""
        unsent = [
            req
            for req in self.preempted
            if req.pending_bootstrap and not req.inflight_middle_chunks
        ]
        if not unsent or not wanted:
            return
        kept = [
            req for req in (scheduler.chunked_req, *self.preempted) if req not in (None, *unsent)
        ]
        freed = sum(req.extend_end for req in unsent)
        if not KvBudget(scheduler, kept).take(wanted[0], freed):
            return
        req = max(unsent, key=lambda req: (req.kairos.ttft_deadline_s, req.kairos.number))
        self.preempted.remove(req)
        self._recomputed += 1
        scheduler.optimistic_release_and_requeue(req)

    def _resume_one(self, scheduler: Any) -> None:
        """Go on with the preempted prompt that is through soonest."""
        if scheduler.chunked_req is None and self.preempted:
            soonest = min(self.preempted, key=lambda req: total_tokens(req) - req.extend_end)
            self.preempted.remove(soonest)
            scheduler.chunked_req = soonest

    def _started(self, formed: Any, started: Sequence[Any], start: float, iteration: int) -> None:
        """Take in what upstream put into the batch, which may be less than planned."""
        chunks = [Chunk(req.prefix_len, req.extend_end - req.prefix_len) for req in formed.reqs]
        model, factor = self.observer.model()
        self._in_flight_s = factor * model.batch_s(chunks)
        self._busy_until_s = start + self._in_flight_s
        self.observer.formed(iteration, chunks, self._in_flight_s)
        self._clock.decided(*(n for r in formed.reqs for n in (r.kairos.number, r.extend_end)))
        for req in formed.reqs:
            req.kairos.matched = False  # should it come back to the queue
            if req.kairos.number in self._jobs:
                self._jobs.note_start(req.kairos.number)
        # What was given back since has no end any more.
        unfinished = (r for r in started if r.extend_end is not None)
        behind = [r.kairos.number for r in unfinished if r.extend_end < total_tokens(r)]
        for req in formed.reqs:
            number = req.kairos.number
            if number not in self._jobs or req.extend_end < total_tokens(req):
                continue
            self._overtakes += self._jobs.began_after(number, behind)
            self._jobs.drop(number)


def planning_refusal(scheduler: Any) -> str | None:
    """Why this scheduler's prefill batches cannot be planned; None if they can."""
    for reason, present in (
        ("not a prefill server", scheduler.disaggregation_mode.value != "prefill"),
        ("chunked prefill is off", not scheduler.chunked_prefill_size),
        ("an embedding model", not scheduler.is_generation),
        ("overlapped loading of LoRA adapters", scheduler.enable_lora_overlap_loading),
        ("hierarchical cache", scheduler.enable_hierarchical_cache),
        ("hybrid sliding-window attention", scheduler.is_hybrid_swa),
        ("speculative decoding", not scheduler.spec_algorithm.is_none()),
        ("mixed chunks", scheduler.is_mixed_chunk),
        (
            "deterministic inference with chunks of a fixed size",
            scheduler.page_size % (scheduler.truncation_align_size or 1) != 0,
        ),
        ("a prefill delayer", scheduler.prefill_delayer is not None),
        ("diffusion model", scheduler.dllm_config is not None),
        ("a state-space model", hasattr(scheduler.req_to_token_pool, "mamba_allocator")),
    ):
        if present:
            return reason
    return None
