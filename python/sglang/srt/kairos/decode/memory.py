"""The memory of one decode server, read from upstream for the preallocation policy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sglang.srt.kairos.decode.rows import DecodeRows
from sglang.srt.kairos.upstream import DecodePreallocQueue, PreallocationScheduler, Req

from kairos.policy.length import Floats, LengthEstimator
from kairos.policy.preallocation import DecodeMemory, PreallocationRequest


class FreeMemory(NamedTuple):
    """Memory that a prompt may get now.

    Attributes:
        tokens: KV tokens to give away, as upstream counts them for its own admission.
        retractable_tokens: KV tokens that retracting the running requests would free.
        slots: requests that may get memory at most.
    """

    tokens: float
    retractable_tokens: int
    slots: int


class DecodeMemoryReader:
    """Reads upstream's queues and allocators.

    Args:
        after_prefill: memory is allocated after prefill.
    """

    def __init__(
        self,
        scheduler: PreallocationScheduler,
        rows: DecodeRows,
        lengths: LengthEstimator,
        after_prefill: bool,
    ) -> None:
        self._scheduler = scheduler
        self._rows = rows
        self._lengths = lengths
        self._after_prefill = after_prefill
        self._capacity_tokens = float(scheduler.max_total_num_tokens)

    def slots(self, queue: DecodePreallocQueue) -> int:
        """Return how many requests may get memory at most."""
        return min(
            queue.req_to_token_pool.available_size(),
            queue.req_to_metadata_buffer_idx_allocator.available_size(),
        )

    def free(self, queue: DecodePreallocQueue, slots: int) -> FreeMemory:
        """Return the memory that may be given away."""
        running = self._scheduler.running_batch.reqs
        retractable = sum(len(req.origin_input_ids) + len(req.output_ids) for req in running)
        free = queue._allocatable_token_budgets(
            retractable_tokens=retractable, count_retracted=True
        )
        return FreeMemory(float(free), retractable, slots)

    def memory(
        self,
        queue: DecodePreallocQueue,
        free: FreeMemory,
        pending: Sequence[PreallocationRequest],
    ) -> DecodeMemory:
        """Return the state of the memory for the policy.

        Args:
            pending: prompts that hold memory and may not be prefilled yet.
        """
        allocated = self.allocated()
        rows = self._rows.rows
        contexts = np.array([len(req.origin_input_ids) for req in allocated], np.float64)
        residents = self._lengths.remaining(
            rows["length_group"], rows["output_tokens"], rows["max_new_tokens"]
        )
        return DecodeMemory(
            self._capacity_tokens,
            free.tokens,
            float(queue.num_reserved_decode_tokens),
            pending,
            np.concatenate([rows["context_tokens"].astype(np.float64), contexts]),
            np.concatenate([residents, self._remaining(allocated)]),
            free.slots,
        )

    def pending(self) -> list[Req]:
        """Return requests that hold memory and may not be prefilled yet."""
        if self._after_prefill:
            return []
        return [waiting.req for waiting in self._scheduler.disagg_decode_transfer_queue.queue]

    def allocated(self) -> list[Req]:
        """Return requests that hold memory and are not in the running batch yet."""
        transferring = self._scheduler.disagg_decode_transfer_queue.queue
        return [*(waiting.req for waiting in transferring), *self._scheduler.waiting_queue]

    def in_use(self) -> bool:
        """Return whether any request holds memory."""
        return bool(self._scheduler.running_batch.reqs or self.allocated())

    def _remaining(self, reqs: Sequence[Req]) -> Floats:
        groups = np.array([self._rows.length_group(req) for req in reqs], np.int64)
        made = np.array([max(len(req.output_ids) - 1, 0) for req in reqs], np.int64)
        limits = np.array([req.sampling_params.max_new_tokens for req in reqs], np.float64)
        return self._lengths.remaining(groups, made, limits)
