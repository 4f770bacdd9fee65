"""Carrying out a planned batch with upstream's own batch forming."""

from collections.abc import Callable, Container

from sglang.srt.kairos.prefill.batch_composer import BatchLimits
from sglang.srt.kairos.prefill.kv_budget import KvBudget
from sglang.srt.kairos.prefill.planned_adder import planned_adder
from sglang.srt.kairos.prefill.planned_batch import PlannedBatch
from sglang.srt.kairos.upstream import PlanningScheduler, PrefillAdder, PrefillBatch, Req

FormedBatch = tuple[PrefillBatch | None, object]
"""The batch to launch, or None, and upstream's running batch, which Kairos only passes on."""

FormBatch = Callable[[object], FormedBatch]
"""Upstream's batch forming; takes the running batch."""


class BatchForming:
    """Shows upstream only the prompts that it may take while it forms a batch."""

    def __init__(self, limits: BatchLimits) -> None:
        """Form batches within `limits`."""
        self._limits = limits
        self._batch: PlannedBatch | None = None
        self._adder: type[PrefillAdder] | None = None

    def ordered(self) -> list[Req] | None:
        """Return the prompts to take from the waiting queue, in order; None while none is formed.

        Only while a planned batch is being formed, the order of the queue is that of the plan.
        """
        return None if self._batch is None else self._batch.from_queue

    def continued_limit(self) -> int | None:
        """Return the most tokens of the continued prompt in the batch being formed."""
        continued = None if self._batch is None else self._batch.continued
        return None if continued is None or continued.finishes else continued.tokens

    def adder_class(self, base: type[PrefillAdder]) -> type[PrefillAdder]:
        """Return upstream's class of adders under the limits of planned batches.

        After `Scheduler.get_prefill_adder_class`.
        """
        if self._adder is None or not issubclass(self._adder, base):
            self._adder = planned_adder(base, self.continued_limit)
        return self._adder

    def form_planned(
        self,
        batch: PlannedBatch,
        form: FormBatch,
        scheduler: PlanningScheduler,
        running_batch: object,
    ) -> FormedBatch:
        """Have upstream form `batch`, with everything else hidden from it."""
        hidden = _show(scheduler, batch.from_queue)
        scheduler.chunked_req = None if batch.continued is None else batch.continued.req
        limits = self._limits
        tokens = max(batch.tokens, limits.page_tokens)
        scheduler.chunked_prefill_size = min(tokens, limits.chunk_tokens)
        self._batch = batch
        try:
            return form(running_batch)
        finally:
            self._batch = None
            scheduler.chunked_prefill_size = limits.chunk_tokens
            scheduler.waiting_queue = [*scheduler.waiting_queue, *hidden]


def form_unplanned(
    budget: KvBudget,
    bounded: bool,
    form: FormBatch,
    scheduler: PlanningScheduler,
    running_batch: object,
) -> FormedBatch:
    """Have upstream form a batch by itself, of prompts that fit into `budget`.

    Args:
        budget: leaves the memory of started prompts to them.
        bounded: prompts are started, or memory is reserved. Otherwise an empty server shows
            upstream its whole queue when nothing fits, and upstream decides alone.
        form: upstream's batch forming.
        scheduler: its waiting queue is cut meanwhile.
        running_batch: goes to `form`.
    """
    fitting = [req for req in scheduler.waiting_queue if budget.take(req)]
    if not fitting and not bounded:
        fitting = scheduler.waiting_queue
    hidden = _show(scheduler, fitting)
    try:
        return form(running_batch)
    finally:
        scheduler.waiting_queue = [*scheduler.waiting_queue, *hidden]


def _show(scheduler: PlanningScheduler, shown: list[Req]) -> list[Req]:
    """Make `shown` the waiting queue; return the requests that are hidden by it."""
    chosen: Container[Req] = set(shown)
    hidden = [req for req in scheduler.waiting_queue if req not in chosen]
    scheduler.waiting_queue = shown
    return hidden
