"""Composing one prefill batch out of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from sglang.srt.kairos.prefill.jobs import PrefillJobs
from sglang.srt.kairos.prefill.kv_budget import KvBudget, in_pages
from sglang.srt.kairos.prefill.planned_batch import Continuation, PlannedBatch
from sglang.srt.kairos.prefill.prompts import cached_tokens, computed_tokens, total_tokens
from sglang.srt.kairos.upstream import LoRAManager, PlanningScheduler, Req

from kairos.policy.jobs import PrefillPlan

# Started prompts hold KV and a row until they finish. Both are bounded, so that a stream of urgent
# long prompts cannot start more than the server can finish.
MAX_STARTED = 16
MAX_STARTED_KV = 0.5  # of the server's KV tokens


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch.

    Attributes:
        page_tokens: size of a KV page.
        chunk_tokens: most new tokens of a batch.
        max_started_tokens: most KV tokens of started prompts.
        adapters: upstream's LoRA adapters; None without LoRA.
    """

    page_tokens: int
    chunk_tokens: int
    max_started_tokens: int
    adapters: LoRAManager | None

    @classmethod
    def of(cls, scheduler: PlanningScheduler) -> "BatchLimits":
        """Return the limits of a scheduler whose prefill can be planned."""
        return cls(
            page_tokens=scheduler.page_size,
            # Never 0 or None here: `planning_refusal` refuses a server without chunked prefill.
            chunk_tokens=scheduler.chunked_prefill_size or 0,
            max_started_tokens=int(MAX_STARTED_KV * scheduler.max_total_num_tokens),
            adapters=scheduler.tp_worker.model_runner.lora_manager
            if scheduler.enable_lora
            else None,
        )


class BatchComposer:
    """Turns plans into batches that upstream can form."""

    def __init__(self, jobs: PrefillJobs, limits: BatchLimits) -> None:
        """Compose batches of `jobs` within `limits`."""
        self._jobs = jobs
        self._limits = limits

    def compose(self, plan: PrefillPlan, started: Sequence[Req]) -> PlannedBatch:
        """Return as much of a plan as upstream can do in one batch.

        Upstream continues at most one started prompt, leaves at most one prompt unfinished, and
        holds a bounded number of LoRA adapters.

        Args:
            plan: the most urgent chunks first.
            started: prompts of which a part is computed.
        """
        continued: Continuation | None = None
        complete: list[Req] = []
        partial: Req | None = None
        tokens = 0
        adapters: set[str | None] = set()
        for number, planned in plan.chunks:
            req = self._jobs[number]
            padded = in_pages(planned, self._limits.page_tokens)
            if tokens and tokens + padded > self._limits.chunk_tokens:
                continue
            begun = req in started
            done = computed_tokens(req) if begun else cached_tokens(req)
            finishes = planned >= total_tokens(req) - done
            has_unfinished = partial is not None or (
                continued is not None and not continued.finishes
            )
            if not finishes and has_unfinished:
                continue
            if not self._adapters_fit(adapters | {req.lora_id}):
                continue
            if begun:
                if continued is not None:
                    continue
                continued = Continuation(req, planned, finishes)
            elif finishes:
                complete.append(req)
            elif self._may_start(started):
                partial = req
            else:
                continue
            tokens += padded
            adapters.add(req.lora_id)
        if tokens == 0 and started:
            return PlannedBatch().continuing(started[0], self._limits.chunk_tokens)
        return PlannedBatch(continued, tuple(complete), partial, tokens)

    def compose_alone(
        self, reserved_for: Req, started: Sequence[Req], scheduler: PlanningScheduler
    ) -> PlannedBatch | None:
        """Return a batch of the prompt that memory is reserved for; None until there is enough."""
        if not KvBudget(scheduler, started).take(reserved_for):
            return None
        rest = total_tokens(reserved_for) - cached_tokens(reserved_for)
        if rest <= self._limits.chunk_tokens:
            return PlannedBatch(
                complete=(reserved_for,), tokens=in_pages(rest, self._limits.page_tokens)
            )
        if not self._may_start(started):
            return None
        return PlannedBatch(partial=reserved_for, tokens=self._limits.chunk_tokens)

    def _adapters_fit(self, adapters: set[str | None]) -> bool:
        """Return whether one batch can hold `adapters`.

        Upstream passes over a prompt whose adapter does not fit beside those of the batch, however
        urgent the prompt is.
        """
        manager = self._limits.adapters
        return manager is None or manager.validate_lora_batch(adapters)

    def _may_start(self, started: Sequence[Req]) -> bool:
        """Return whether one more prompt may be left unfinished."""
        held = sum(map(computed_tokens, started)) + self._limits.chunk_tokens
        return len(started) < MAX_STARTED and held <= self._limits.max_started_tokens
