"""Which of the prompts that have shaken hands get decode memory, and in which order."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sglang.srt.environ import envs
from sglang.srt.kairos.decode_rows import DecodeRows
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import Chunk, PrefillModel
from kairos.policy.length import LengthEstimator
from kairos.policy.preallocation import (
    DecodeMemory,
    Preallocation,
    PreallocationParams,
    PreallocationRequest,
    shortest_prefill_s,
)


class _Known(NamedTuple):
    """What does not change while a request waits.

    Attributes:
        made: tokens of output it came with.
        group: of its output length.
        limit: tokens it may make.
    """

    request: PreallocationRequest
    made: int
    group: int
    limit: float


class DecodePreallocation:
    """Decides for one upstream `DecodePreallocQueue`.

    Args:
        refusal: why the order is upstream's; None if it is Kairos'.
    """

    def __init__(
        self,
        prefill: PrefillModel,
        rows: DecodeRows,
        lengths: LengthEstimator,
        clock: SharedClock,
        scheduler: Any,
        refusal: str | None,
    ) -> None:
        self._prefill = prefill
        self._rows = rows
        self._lengths = lengths
        self._clock = clock
        self._scheduler = scheduler
        self._refusal = refusal
        # The prefill server gives up a prompt whose decode memory takes longer than this.
        engine_timeout_s = envs.SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT.get() / 2.0
        self._policy = Preallocation(PreallocationParams(engine_timeout_s=engine_timeout_s))
        args = scheduler.server_args
        # Whether memory is given away after prefill: there is no work left then.
        self._after = args.disaggregation_decode_allocation_policy == "prefill_complete"
        self._most_output = envs.SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION.get()
        self._capacity = float(scheduler.max_total_num_tokens)
        self._page = int(scheduler.page_size)
        self._known: dict[int, _Known] = {}
        self._granted = self._granted_infeasible = self._skips = 0

    def arrange(self, queue: Any) -> None:
        """After `DecodePreallocQueue._update_handshake_waiters`, which `pop_preallocated` calls
        first: put those that get memory in front, and have the loop behind it skip the others.
        They count as not ready until upstream asks their peers again, in the next pass."""
        if self._refusal is not None or not queue.queue:
            return
        ready = [
            waiting
            for waiting in queue.queue
            if waiting.waiting_for_input and waiting.req.finished_reason is None
        ]
        if self._scheduler.enable_lora:
            ready = self._with_adapter(ready)
        if not ready:
            return
        slots = min(
            queue.req_to_token_pool.available_size(),
            queue.req_to_metadata_buffer_idx_allocator.available_size(),
        )
        if slots <= 0:
            return  # upstream stops at the first, too
        now = self._clock.now()
        free, retractable = self._free(queue)
        known = [self._of(waiting.req) for waiting in ready]
        pending = [self._of(req) for req in self._pending()]
        self._known = {one.request.id: one for one in (*known, *pending)}
        shortest = min(one.request.tokens for one in known)
        if shortest + queue.num_reserved_decode_tokens > free and self._active():
            for waiting in ready:
                waiting.waiting_for_input = False
            return
        prompts = self._requests(known, retractable)
        room = self._room(queue, free, slots, [one.request for one in pending])
        grants = self._policy.grant(prompts, room, now)
        if not grants and not self._active():
            return  # an empty server: upstream decides what fits it at all
        chosen = [ready[grant.at] for grant in grants]
        numbers = {waiting.req.kairos.number for waiting in chosen}
        last = max(numbers, default=0)
        for waiting in ready:
            number = waiting.req.kairos.number
            if number not in numbers:
                waiting.waiting_for_input = False
                self._skips += number < last
        others = [waiting for waiting in queue.queue if not _among(waiting, numbers)]
        queue.queue[:] = [*chosen, *others]
        for grant in grants:
            self._granted += 1
            self._granted_infeasible += grant.infeasible
        if grants:
            self._clock.decided(*(prompts[grant.at].id for grant in grants))

    def arrange_retracted(self, queue: Any) -> None:
        """Before `DecodePreallocQueue.resume_retracted_reqs`."""
        if self._refusal is None and len(queue.retracted_queue) > 1:
            queue.retracted_queue.sort(
                key=lambda req: (len(req.origin_input_ids) + len(req.output_ids), _number(req))
            )

    def take_in_transferred(self) -> None:
        """After `process_decode_queue`, which looks at no transfer while a retracted request waits
        for memory."""
        scheduler = self._scheduler
        waiting = scheduler.disagg_decode_prealloc_queue.retracted_queue
        if self._refusal is None and waiting and scheduler.disagg_decode_transfer_queue.queue:
            arrived = scheduler.disagg_decode_transfer_queue.pop_transferred()
            scheduler.waiting_queue.extend(arrived)

    def snapshot(self) -> dict[str, Any]:
        """Counters for /server_info."""
        return {
            "order": "kairos" if self._refusal is None else f"upstream: {self._refusal}",
            "granted": self._granted,
            "granted_infeasible": self._granted_infeasible,
            "skips": self._skips,
        }

    def _with_adapter(self, ready: list[Any]) -> list[Any]:
        """Those whose LoRA adapter has a slot or would get one. Upstream passes the others by."""
        scheduler = self._scheduler
        running = scheduler.running_batch.reqs
        adapters = {req.lora_id for req in (*running, *self._promised())}
        return [one for one in ready if scheduler.can_schedule_lora_req(one.req, adapters)]

    def _of(self, req: Any) -> _Known:
        slo = req.kairos
        made = max(len(req.output_ids) - 1, 0)
        # Whoever streams and was retracted has met its deadline, or missed it long ago.
        streams = slo.first_token_s is not None
        deadline_s = math.inf if streams else slo.ttft_deadline_s
        known = self._known.get(slo.number)
        if known is not None and (known.made, known.request.deadline_s) == (made, deadline_s):
            return known
        # Upstream's allocator gives whole pages.
        tokens = -(-(len(req.origin_input_ids) + made) // self._page) * self._page
        min_prefill_s = 0.0
        if not self._after:
            whole_s = self._prefill.batch_s([Chunk(0, tokens)])
            min_prefill_s = shortest_prefill_s(whole_s, slo.slo.ttft_s)
        request = PreallocationRequest(
            slo.number,
            tokens,
            slo.arrival_s,
            deadline_s,
            min_prefill_s,
            prefill_server=f"{req.bootstrap_host}:{req.bootstrap_port}",
        )
        limit = float(req.sampling_params.max_new_tokens)
        return _Known(request, made, self._rows.group(req), limit)

    def _requests(self, known: Sequence[_Known], retractable: int) -> list[PreallocationRequest]:
        """What upstream wants to see free before it takes one in: room for its whole output, unless
        retracting those that run would make it."""
        outputs = self._lengths.remaining(
            np.array([one.group for one in known], np.int64),
            np.array([one.made for one in known], np.int64),
            np.array([one.limit for one in known]),
        ).tolist()
        return [
            one.request._replace(
                expected_output_tokens=output,
                required_free_tokens=one.request.tokens
                + min(one.limit, self._most_output)
                - retractable,
            )
            for one, output in zip(known, outputs, strict=True)
        ]

    def _free(self, queue: Any) -> tuple[float, int]:
        """Tokens to give away, as upstream counts them for its own admission, and how many
        retracting would free."""
        running = self._scheduler.running_batch.reqs
        retractable = sum(len(r.origin_input_ids) + len(r.output_ids) for r in running)
        free = queue._allocatable_token_budgets(
            retractable_tokens=retractable, count_retracted=True
        )
        return float(free), retractable

    def _room(
        self, queue: Any, free: float, slots: int, pending: Sequence[PreallocationRequest]
    ) -> DecodeMemory:
        promised = self._promised()
        rows = self._rows.rows
        contexts = np.array([len(req.origin_input_ids) for req in promised], np.float64)
        residents = self._lengths.remaining(
            rows["length_group"], rows["output_tokens"], rows["max_new_tokens"]
        )
        return DecodeMemory(
            self._capacity,
            free,
            float(queue.num_reserved_decode_tokens),
            pending,
            np.concatenate([rows["context_tokens"].astype(np.float64), contexts]),
            np.concatenate([residents, self._remaining(promised)]),
            slots,
        )

    def _pending(self) -> list[Any]:
        """Requests that hold memory and may not be prefilled yet."""
        if self._after:
            return []
        return [waiting.req for waiting in self._scheduler.disagg_decode_transfer_queue.queue]

    def _promised(self) -> list[Any]:
        """Requests that hold memory and are not in the running batch yet."""
        transferring = self._scheduler.disagg_decode_transfer_queue.queue
        return [*(waiting.req for waiting in transferring), *self._scheduler.waiting_queue]

    def _remaining(self, reqs: Sequence[Any]) -> Any:
        groups = np.array([self._rows.group(req) for req in reqs], np.int64)
        made = np.array([max(len(req.output_ids) - 1, 0) for req in reqs], np.int64)
        limits = np.array([req.sampling_params.max_new_tokens for req in reqs], np.float64)
        return self._lengths.remaining(groups, made, limits)

    def _active(self) -> bool:
        return bool(self._scheduler.running_batch.reqs or self._promised())


def preallocation_refusal(scheduler: Any, skipping: str | None) -> str | None:
    """Why preallocation follows upstream's order on this `Scheduler`; None if it does not.
    `skipping`: why it cannot park requests."""
    if scheduler.enable_priority_scheduling:
        return "priority scheduling"
    if skipping is not None:
        return skipping
    if scheduler.enable_lora_overlap_loading:
        return "overlapped loading of LoRA adapters"  # asking which request may run would load them
    if scheduler.enable_decode_hicache:
        return "hierarchical cache on decode"
    if scheduler.server_args.disaggregation_decode_enable_radix_cache:
        return "radix cache on decode"  # prompts that share a prefix need less than they count for
    if scheduler.server_args.disaggregation_decode_host_receive_threshold < 1:
        return "reception into host memory"  # which takes no device memory from anybody
    return None


def _among(waiting: Any, numbers: set[int]) -> bool:
    """Whether a request of upstream's queue was chosen."""
    return _number(waiting.req) in numbers


def _number(req: Any) -> int:
    """Upstream makes requests in other ways than through the hook that numbers them: those have
    0, which nobody else has."""
    request = getattr(req, "kairos", None)
    return 0 if request is None else int(request.number)
