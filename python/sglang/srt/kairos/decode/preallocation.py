"""Decode memory for prompts whose handshake is done: which get it, and in which order."""

from collections.abc import Sequence

from sglang.srt.environ import envs
from sglang.srt.kairos.decode.memory import DecodeMemoryReader, FreeMemory
from sglang.srt.kairos.decode.prompts import DecodePrompts, WaitingPrompt, remaining_outputs
from sglang.srt.kairos.decode.rows import DecodeRows
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import (
    DecodePreallocQueue,
    DecodeRequest,
    PreallocationScheduler,
    Req,
    RetractedRequests,
    Scheduler,
)

from kairos.latency import PrefillModel
from kairos.policy.length import LengthEstimator
from kairos.policy.preallocation import Preallocation, PreallocationParams, PreallocationRequest


class DecodePreallocation:
    """Decides for one upstream `DecodePreallocQueue`.

    Args:
        prefill: predicts the prefill of a prompt.
        rows: the requests of the running batch.
        lengths: predicts output lengths.
        clock: time of decisions.
        scheduler: the upstream scheduler.
        refusal: why the order is upstream's; None if it is Kairos' order.

    Attributes:
        prompts: the waiting prompts, as the policy reads them.
    """

    def __init__(
        self,
        prefill: PrefillModel,
        rows: DecodeRows,
        lengths: LengthEstimator,
        clock: SharedClock,
        scheduler: PreallocationScheduler,
        refusal: str | None,
    ) -> None:
        policy = scheduler.server_args.disaggregation_decode_allocation_policy
        after_prefill = policy == "prefill_complete"
        model = None if after_prefill else prefill
        self.prompts = DecodePrompts(model, rows, int(scheduler.page_size))
        self._memory = DecodeMemoryReader(scheduler, rows, lengths, after_prefill)
        self._lengths = lengths
        self._clock = clock
        self._scheduler = scheduler
        self._refusal = refusal
        # The prefill server aborts a prompt whose decode memory takes longer than its timeout.
        engine_timeout_s = envs.SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT.get() / 2.0
        self._policy = Preallocation(PreallocationParams(engine_timeout_s=engine_timeout_s))
        self._max_output = envs.SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION.get()
        self._granted = self._granted_infeasible = self._skips = 0

    def arrange(self, queue: DecodePreallocQueue) -> None:
        """Put the prompts that get memory in front, and have upstream skip the others.

        Runs after `DecodePreallocQueue._update_handshake_waiters`, which `pop_preallocated` calls
        first. The other prompts count as not ready until upstream polls their peers again, in the
        next pass.
        """
        if self._refusal is not None or not queue.queue:
            return
        ready = self._ready(queue)
        if not ready:
            return
        slots = self._memory.slots(queue)
        if slots <= 0:
            return  # upstream stops at the first prompt, too
        now = self._clock.now()
        free = self._memory.free(queue, slots)
        waiting = [self.prompts.of(one.req) for one in ready]
        pending = [self.prompts.of(req) for req in self._memory.pending()]
        self.prompts.keep((*waiting, *pending))
        if not self._policy.expects_objectives(
            (prompt.request for prompt in (*waiting, *pending)), now
        ):
            return  # upstream's order
        shortest = min(prompt.request.tokens for prompt in waiting)
        if shortest + queue.num_reserved_decode_tokens > free.tokens and self._memory.in_use():
            for one in ready:
                one.waiting_for_input = False
            return
        requests = self._requests(waiting, free)
        memory = self._memory.memory(queue, free, [prompt.request for prompt in pending])
        grants = self._policy.grant(requests, memory, now)
        if not grants and not self._memory.in_use():
            return  # an empty server: upstream decides whether a prompt fits at all
        self._reorder(queue, ready, [ready[grant.at] for grant in grants])
        for grant in grants:
            self._granted += 1
            self._granted_infeasible += grant.infeasible
        if grants:
            self._clock.decided(*(requests[grant.at].id for grant in grants))

    def arrange_retracted(self, queue: RetractedRequests) -> None:
        """Put short retracted requests first, unless none of them has an objective.

        Runs before `DecodePreallocQueue.resume_retracted_reqs`.
        """
        retracted = queue.retracted_queue
        ordered = self._refusal is None and len(retracted) > 1
        if ordered and not all(req.kairos.slo.best_effort for req in retracted):
            retracted.sort(
                key=lambda req: (len(req.origin_input_ids) + len(req.output_ids), _number(req))
            )

    def pop_transferred(self) -> list[Req]:
        """Return requests whose KV has arrived while a retracted request waits for memory.

        Runs after `resume_retracted_reqs`: upstream polls no transfer while it leaves some.
        """
        scheduler = self._scheduler
        waiting = scheduler.disagg_decode_prealloc_queue.retracted_queue
        if self._refusal is None and waiting and scheduler.disagg_decode_transfer_queue.queue:
            return scheduler.disagg_decode_transfer_queue.pop_transferred()
        return []

    def snapshot(self) -> dict[str, object]:
        """Return counters for /server_info."""
        return {
            "order": "kairos" if self._refusal is None else f"upstream: {self._refusal}",
            "granted": self._granted,
            "granted_infeasible": self._granted_infeasible,
            "skips": self._skips,
        }

    def _ready(self, queue: DecodePreallocQueue) -> list[DecodeRequest]:
        """Requests that could use memory now."""
        ready = [
            waiting
            for waiting in queue.queue
            if waiting.waiting_for_input and waiting.req.finished_reason is None
        ]
        if not self._scheduler.enable_lora:
            return ready
        # Upstream passes over requests whose LoRA adapter neither has a slot nor would get one.
        running = self._scheduler.running_batch.reqs
        adapters = {req.lora_id for req in (*running, *self._memory.allocated())}
        return [one for one in ready if self._scheduler.can_schedule_lora_req(one.req, adapters)]

    def _requests(
        self, waiting: Sequence[WaitingPrompt], free: FreeMemory
    ) -> list[PreallocationRequest]:
        """Requests with their expected output and the free memory that upstream requires.

        Upstream requires room for the whole output, unless retracting the running requests would
        make that room.
        """
        outputs = remaining_outputs(waiting, self._lengths).tolist()
        return [
            prompt.request._replace(
                expected_output_tokens=output,
                required_free_tokens=prompt.request.tokens
                + min(prompt.max_new_tokens, self._max_output)
                - free.retractable_tokens,
            )
            for prompt, output in zip(waiting, outputs, strict=True)
        ]

    def _reorder(
        self,
        queue: DecodePreallocQueue,
        ready: Sequence[DecodeRequest],
        chosen: Sequence[DecodeRequest],
    ) -> None:
        """Put the chosen requests in front, and mark the other ready ones as not ready."""
        numbers = {one.req.kairos.number for one in chosen}
        last = max(numbers, default=0)
        for one in ready:
            number = one.req.kairos.number
            if number not in numbers:
                one.waiting_for_input = False
                self._skips += number < last
        others = [one for one in queue.queue if _number(one.req) not in numbers]
        queue.queue[:] = [*chosen, *others]


def preallocation_refusal(scheduler: Scheduler, skipping: str | None) -> str | None:
    """Return why preallocation follows upstream's order; None if it follows Kairos' order.

    Args:
        skipping: why the scheduler's requests cannot be skipped; None if they can.
    """
    if scheduler.enable_priority_scheduling:
        return "priority scheduling"
    if skipping is not None:
        return skipping
    if scheduler.enable_lora_overlap_loading:
        # The question whether an adapter has a slot would load it.
        return "overlapped loading of LoRA adapters"
    if scheduler.enable_decode_hicache:
        return "hierarchical cache on decode"
    if scheduler.server_args.disaggregation_decode_enable_radix_cache:
        return "radix cache on decode"  # prompts with a shared prefix need less than they count for
    if scheduler.server_args.disaggregation_decode_host_receive_threshold < 1:
        return "reception into host memory"  # it takes no device memory
    return None


def _number(req: Req) -> int:
    """Number of a request; 0, which no numbered request has, for one made without the hook."""
    request = getattr(req, "kairos", None)
    return 0 if request is None else int(request.number)
