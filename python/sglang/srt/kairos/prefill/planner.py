"""Prefill batches planned by urgency, carried out by upstream's own batch forming.

Upstream continues the one prompt that it has started before anything else. The planner decides each
batch anew: prompts that are not planned are hidden from the waiting queue while upstream forms the
batch, and a started prompt that is not planned is preempted and keeps its KV.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sglang.srt.kairos.prefill.batch_composer import BatchComposer, BatchLimits
from sglang.srt.kairos.prefill.batch_forming import (
    BatchForming,
    FormBatch,
    FormedBatch,
    form_unplanned,
)
from sglang.srt.kairos.prefill.jobs import PrefillJobs
from sglang.srt.kairos.prefill.kv_budget import KvBudget, KvReservation
from sglang.srt.kairos.prefill.observer import PrefillObserver
from sglang.srt.kairos.prefill.planned_batch import PlannedBatch
from sglang.srt.kairos.prefill.preempted_prompts import PreemptedPrompts
from sglang.srt.kairos.prefill.prefix_matching import forget_matches, match_prefixes
from sglang.srt.kairos.prefill.prompts import cached_tokens, must_continue, total_tokens
from sglang.srt.kairos.rank_batches import RankBatches
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import PlanningScheduler, PrefillBatch, Req

from kairos.latency import Chunk, Profile
from kairos.policy.engine_defaults import HANDOVER_AFTER_PREFILL_S, HANDOVER_S, prefill_urgency
from kairos.policy.priorities import PriorityQueues


class _InFlight(NamedTuple):
    """The batch that was formed last.

    Attributes:
        end_s: its predicted end, seconds on the clock of decisions.
        batch_s: its predicted duration, seconds.
    """

    end_s: float
    batch_s: float


class _Attempt(NamedTuple):
    """One pass of batch forming.

    Attributes:
        start_s: when the batch will start, seconds on the clock of decisions.
        started: prompts of which a part is computed.
        reserved_for: the prompt that the next free memory is for, or None.
        batch: the batch that upstream is to form; None: upstream decides alone.
        wanted: the first prompt that was planned to be taken from the waiting queue, or nothing.
    """

    start_s: float
    started: Sequence[Req]
    reserved_for: Req | None
    batch: PlannedBatch | None
    wanted: Sequence[Req]


class PrefillPlanner:
    """Plans the prefill batches of one scheduler.

    Attributes:
        preempted: started prompts that the scheduler does not know as its `chunked_req`.
        forming: has upstream form the planned batches.
        observer: measures the batches and learns from them.
        urgency: the parameters of the policy.
    """

    def __init__(
        self,
        profile: Profile,
        scheduler: PlanningScheduler,
        clock: SharedClock,
        learned_file: Path | None = None,
        ranks: RankBatches | None = None,
    ) -> None:
        """Begin on an idle scheduler.

        Args:
            profile: the latency models to begin with.
            scheduler: the scheduler, without a `planning_refusal`.
            clock: time and learned values of the decisions.
            learned_file: keeps the learned model between runs; None keeps nothing.
            ranks: what the data-parallel attention ranks of the server run; None: there is one.
        """
        self._clock = clock
        self._overlap = scheduler.enable_overlap
        self._limits = limits = BatchLimits.of(scheduler)
        policy = scheduler.server_args.disaggregation_decode_allocation_policy
        handover_s = HANDOVER_S if policy == "early" else HANDOVER_AFTER_PREFILL_S
        self.urgency = prefill_urgency(profile.kv.transfer_s(limits.chunk_tokens), handover_s)
        self._queue = PriorityQueues(profile.prefill, limits.chunk_tokens, self.urgency)
        self._jobs = PrefillJobs(self._queue)
        self._composer = BatchComposer(self._jobs, limits)
        self._reservation = KvReservation(self._jobs, clock, scheduler)
        self.forming = BatchForming(limits)
        self.preempted = PreemptedPrompts()
        self.observer = PrefillObserver(profile, clock, self._overlap, learned_file, ranks)
        self._unmatched: list[Req] = []  # waiting prompts, not looked up in the radix cache
        self._computed: list[Req] = []  # prompts whose results have arrived since the last pass
        self._in_flight = _InFlight(0.0, 0.0)
        self._overtakes = 0
        self._longest_plan_s = 0.0

    def next_batch(
        self, form: FormBatch, scheduler: PlanningScheduler, running_batch: object
    ) -> FormedBatch:
        """Plan the next batch and have upstream form it.

        Where all prompts are best effort, and no other is expected, upstream decides alone.

        Around `Scheduler._get_new_batch_prefill_raw`.

        Args:
            form: upstream's batch forming.
            scheduler: its waiting queue and its started prompt are planned.
            running_batch: goes to `form`.
        """
        running = scheduler.chunked_req
        computed, self._computed = self._computed, []
        if running is None and not self.preempted.reqs and not scheduler.waiting_queue:
            if self._jobs:  # aborted prompts, which would be kept until the next plan
                self._jobs.clear()
                self._unmatched.clear()
            return form(running_batch)
        if running is not None and must_continue(running):
            return form(running_batch)
        attempt = self._plan(scheduler, computed)
        if attempt.batch is None:
            formed, running_batch = form(running_batch)
        else:
            formed, running_batch = self._form_attempt(
                attempt, attempt.batch, form, scheduler, running_batch
            )
        self.preempted.preemptions += running is not None and running in self.preempted.reqs
        if formed is not None:
            self._note_formed(formed, attempt, scheduler.forward_ct + 1)
        self._jobs.record_queue(scheduler.waiting_queue)
        return formed, running_batch

    def is_idle(self) -> bool:
        """Return whether no prompt waited and none was started at the last plan."""
        return not self._jobs

    def process_result(
        self, process: Callable[[], None], scheduler: PlanningScheduler, batch: PrefillBatch
    ) -> None:
        """Note the computed prompts; see `PreemptedPrompts.process_result`."""
        self._computed += batch.reqs
        self.preempted.process_result(process, scheduler, batch)

    def snapshot(self) -> dict[str, float]:
        """Return the counters for /server_info.

        preempted: prompts set aside now. preemptions: how often a prompt was set aside. overtakes:
        prompts that finished before one that had started earlier. demotions: prompts that became
        infeasible or deferred after they had been feasible. starvation_grants: batches for a prompt
        that had waited too long. recomputed: preempted prompts whose KV was given back.
        """
        return {
            "preempted": len(self.preempted.reqs),
            "max_preempted": self.preempted.max_count,
            "preemptions": self.preempted.preemptions,
            "overtakes": self._overtakes,
            "demotions": self._queue.demotions,
            "starvation_grants": self._queue.grants,
            "recomputed": self.preempted.recomputed,
            "longest_plan_ms": round(self._longest_plan_s * 1e3, 3),
            **self.observer.snapshot(),
        }

    def next_start_s(self) -> float:
        """Return when the batch to be planned will start, seconds on the clock of decisions.

        Under the overlap schedule that is the predicted end of the batch in flight, which itself
        has started by now.
        """
        now = self._clock.now()
        if not self._overlap:
            return now
        return min(max(now, self._in_flight.end_s), now + self._in_flight.batch_s)

    def _plan(self, scheduler: PlanningScheduler, computed: Sequence[Req]) -> _Attempt:
        """Take in the scheduler's lists and compose the next batch."""
        begin = time.perf_counter()
        started = self.preempted.started(scheduler)
        fresh = self._jobs.sync(scheduler.waiting_queue, started, scheduler.policy)
        self._match([*fresh, *forget_matches(scheduler.waiting_queue, computed)], scheduler)
        self._queue.predict_with(*self.observer.model())
        start_s = self.next_start_s()
        if not self.preempted.reqs and not self._queue.expects_objectives(start_s):
            return _Attempt(start_s, started, None, None, ())
        plan = self._queue.plan(start_s, self._limits.chunk_tokens, self._limits.page_tokens)
        reserved_for = self._reservation.reserved_for()
        batch = None
        if reserved_for is not None:
            batch = self._composer.compose_alone(reserved_for, started, scheduler)
        if batch is None:
            batch = self._composer.compose(plan, started)
        self._longest_plan_s = max(self._longest_plan_s, time.perf_counter() - begin)
        return _Attempt(start_s, started, reserved_for, batch, batch.from_queue[:1])

    def _match(self, more: Sequence[Req], scheduler: PlanningScheduler) -> None:
        """Look up `more` and those left over from earlier passes, as many as a pass may."""
        candidates = [*self._unmatched, *more]
        self._unmatched = [req for req in candidates if self._jobs.waits(req.kairos.number)]
        for req in match_prefixes(self._unmatched, scheduler.tree_cache):
            self._queue.progress(req.kairos.number, cached_tokens(req))
        self._unmatched = [req for req in self._unmatched if not req.kairos.matched]

    def _form_attempt(
        self,
        attempt: _Attempt,
        batch: PlannedBatch,
        form: FormBatch,
        scheduler: PlanningScheduler,
        running_batch: object,
    ) -> FormedBatch:
        """Have upstream form the planned batch, or one of its own where that fails."""
        formed, running_batch = self._form_planned(attempt, batch, form, scheduler, running_batch)
        if formed is not None:
            return formed, running_batch
        # Memory or rows are short, most likely, so upstream decides. Some started prompt must run,
        # or none of them would ever free its memory.
        self.preempted.release_one(scheduler, attempt.wanted)
        self.preempted.resume_one(scheduler)
        started = self.preempted.started(scheduler)
        budget = KvBudget(scheduler, started, attempt.reserved_for)
        bounded = bool(started) or attempt.reserved_for is not None
        return form_unplanned(budget, bounded, form, scheduler, running_batch)

    def _form_planned(
        self,
        attempt: _Attempt,
        batch: PlannedBatch,
        form: FormBatch,
        scheduler: PlanningScheduler,
        running_batch: object,
    ) -> FormedBatch:
        """Have upstream form those of the planned prompts that have memory to their end."""
        budget = KvBudget(scheduler, attempt.started, attempt.reserved_for)
        planned = batch.from_queue
        fitting = [req for req in planned if budget.take(req)]
        if len(fitting) < len(planned):
            batch = batch.without_others(fitting)
        if attempt.reserved_for is None:
            self._reservation.reserve_for(req for req in planned if req not in fitting)
        elif attempt.started and not fitting and batch.continued is None:
            batch = batch.continuing(attempt.started[0], self._limits.chunk_tokens)
        continued = None if batch.continued is None else batch.continued.req
        self.preempted.replace([req for req in attempt.started if req is not continued])
        return self.forming.form_planned(batch, form, scheduler, running_batch)

    def _note_formed(self, formed: PrefillBatch, attempt: _Attempt, iteration: int) -> None:
        """Take in the prompts of the formed batch, which may be fewer than planned."""
        ends = [(req, req.extend_end or 0) for req in formed.reqs]
        chunks = [Chunk(req.prefix_len, end - req.prefix_len) for req, end in ends]
        model, factor = self.observer.model()
        batch_s = factor * model.batch_s(chunks)
        self._in_flight = _InFlight(attempt.start_s + batch_s, batch_s)
        self.observer.formed(iteration, chunks, batch_s)
        self._clock.decided(*(value for req, end in ends for value in (req.kairos.number, end)))
        for req in formed.reqs:
            req.kairos.matched = False  # in case that it comes back to the queue
            if req.kairos.number in self._jobs:
                self._jobs.note_start(req.kairos.number)
        behind = [req.kairos.number for req in attempt.started if _is_unfinished(req)]
        for req, end in ends:
            number = req.kairos.number
            if number not in self._jobs or end < total_tokens(req):
                continue
            self._overtakes += self._jobs.began_after(number, behind)
            self._jobs.drop(number)


def _is_unfinished(req: Req) -> bool:
    """Return whether a started prompt has tokens to compute, and its KV was not given back."""
    return req.extend_end is not None and req.extend_end < total_tokens(req)
