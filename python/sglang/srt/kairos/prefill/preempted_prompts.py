"""Started prompts that are set aside between two of their chunks."""

from collections.abc import Callable, Sequence

from sglang.srt.kairos.prefill.kv_budget import KvBudget
from sglang.srt.kairos.prefill.prompts import computed_tokens, total_tokens
from sglang.srt.kairos.upstream import AbortReq, PlanningScheduler, PrefillBatch, Req


class PreemptedPrompts:
    """Started prompts that the scheduler does not know as its `chunked_req`.

    Attributes:
        reqs: the prompts, with the KV that they have.
        preemptions: how often a prompt was set aside.
        max_count: the most prompts at once.
        recomputed: prompts whose KV was given back.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.reqs: list[Req] = []
        self.preemptions = 0
        self.max_count = 0
        self.recomputed = 0
        self._aborted: list[Req] = []

    def replace(self, reqs: Sequence[Req]) -> None:
        """Set aside exactly `reqs`."""
        self.reqs = list(reqs)
        self.max_count = max(self.max_count, len(self.reqs))

    def started(self, scheduler: PlanningScheduler) -> list[Req]:
        """Return all started prompts, the scheduler's own first."""
        running = scheduler.chunked_req
        return self.reqs if running is None else [running, *self.reqs]

    def abort(self, request: AbortReq) -> None:
        """Note which preempted prompts an abort means; see `process_aborts`."""
        self._aborted += [
            req for req in self.reqs if request.abort_all or req.rid.startswith(request.rid)
        ]

    def process_aborts(self, process: Callable[[], None], scheduler: PlanningScheduler) -> None:
        """End aborted prompts as upstream ends its own started one.

        Around `Scheduler.process_pending_chunked_abort`.

        Args:
            process: upstream's method of `scheduler`.
            scheduler: has its own prompt to be aborted, or none.
        """
        process()
        # A client that disconnects after its abort causes a second abort.
        aborted, self._aborted = dict.fromkeys(self._aborted), []
        for req in aborted:
            own = scheduler.chunked_req, scheduler._pending_chunked_abort_req
            scheduler.chunked_req = scheduler._pending_chunked_abort_req = req
            process()
            scheduler.chunked_req, scheduler._pending_chunked_abort_req = own
            self.reqs.remove(req)

    def process_result(
        self, process: Callable[[], None], scheduler: PlanningScheduler, batch: PrefillBatch
    ) -> None:
        """Have upstream process a result with a preempted prompt of its batch as `chunked_req`.

        Around `Scheduler.process_batch_result_disagg_prefill`. Upstream takes any other prompt that
        still waits for its decode server for one that was aborted. The batch's own `chunked_req` is
        not in the copy of the batch that results come with.

        Args:
            process: upstream's method of `scheduler`, for this result.
            scheduler: has its own started prompt, or none.
            batch: the batch of the result.
        """
        preempted = next((req for req in self.reqs if req in batch.reqs), None)
        if preempted is None:
            process()
            return
        own, scheduler.chunked_req = scheduler.chunked_req, preempted
        try:
            process()
        finally:
            scheduler.chunked_req = own

    def release_one(self, scheduler: PlanningScheduler, wanted: Sequence[Req]) -> None:
        """Free the KV of the prompt with the longest slack; it will be computed again.

        Only prompts of which nothing has been sent are considered: a transfer may still read sent
        tokens, and the scheduler receives no transfer-completion event.

        Args:
            scheduler: takes the prompt back into its queue.
            wanted: waiting prompts that were planned. Nothing is freed unless freeing all unsent
                prompts would make room for the first of them.
        """
        unsent = [
            req for req in self.reqs if req.pending_bootstrap and not req.inflight_middle_chunks
        ]
        if not unsent or not wanted:
            return
        kept = [req for req in self.started(scheduler) if req not in unsent]
        freed = sum(map(computed_tokens, unsent))
        if not KvBudget(scheduler, kept).take(wanted[0], freed):
            return
        req = max(unsent, key=lambda req: (req.kairos.ttft_deadline_s, req.kairos.number))
        self.reqs.remove(req)
        self.recomputed += 1
        scheduler.optimistic_release_and_requeue(req)

    def resume_one(self, scheduler: PlanningScheduler) -> None:
        """Hand the scheduler the prompt with the least left to compute, if it has none."""
        if scheduler.chunked_req is None and self.reqs:
            soonest = min(self.reqs, key=lambda req: total_tokens(req) - computed_tokens(req))
            self.reqs.remove(soonest)
            scheduler.chunked_req = soonest
