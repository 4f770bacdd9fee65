"""One planned prefill batch, and what the planner reads of an upstream request."""

from dataclasses import dataclass, field
from typing import Any

from kairos.policy.jobs import PrefillJob


@dataclass(slots=True)
class PlannedBatch:
    """What one forward shall compute.

    Attributes:
        continued: the started prompt that continues, or None.
        continued_tokens: tokens of it.
        continued_finishes: these are its last ones.
        complete: waiting requests that are prefilled from their cached prefix to the end.
        partial: one waiting request of which only a part fits, or None.
        tokens: all new tokens, in complete pages.
    """

    continued: Any = None
    continued_tokens: int = 0
    continued_finishes: bool = False
    complete: list[Any] = field(default_factory=list)
    partial: Any = None
    tokens: int = 0

    @property
    def waiting(self) -> list[Any]:
        """Requests to take from the waiting queue. The partial one ends the batch: upstream cuts
        whatever exceeds the budget."""
        return [*self.complete, self.partial] if self.partial is not None else self.complete

    def continue_with(self, continued: Any, tokens: int) -> None:
        """Continue this started prompt, with all that is left of the batch."""
        self.continued, self.continued_tokens, self.tokens = continued, tokens, tokens

    @property
    def unfinished(self) -> bool:
        """It leaves a prompt unfinished; upstream can track one such prompt a batch."""
        return self.partial is not None or (
            self.continued is not None and not self.continued_finishes
        )


def job_of(req: Any) -> PrefillJob:
    """What the policy knows of a waiting upstream `Req`."""
    return PrefillJob(
        id=req.kairos.number,
        arrival_s=req.kairos.arrival_s,
        deadline_s=req.kairos.ttft_deadline_s,
        total_tokens=total_tokens(req),
        done_tokens=cached_tokens(req),
    )


def total_tokens(req: Any) -> int:
    """Length of its prompt. An empty one counts as one token: none at all is no job."""
    return max(1, len(req.origin_input_ids) + len(req.output_ids))


def cached_tokens(req: Any) -> int:
    """Tokens of a waiting request that the radix cache holds. The last one is always computed."""
    return min(req.num_matched_prefix_tokens or 0, total_tokens(req) - 1)


def must_continue(req: Any) -> bool:
    """A started prompt that upstream must have next: it is about to end it."""
    return bool(req.finished() or req.to_finish is not None)
