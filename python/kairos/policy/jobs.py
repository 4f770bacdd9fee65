"""What a prefill policy sees of a request, and what it answers."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kairos.errors import InputError


@dataclass(frozen=True, slots=True)
class PrefillJob:
    """One request that waits for prefill, started or not.

    Attributes:
        id: breaks ties; must be the same on all tensor-parallel ranks (the bootstrap room).
        arrival_s: when the request arrived, seconds on the policy's clock.
        deadline_s: when its first token is due, same clock; after `arrival_s`.
        total_tokens: length of the prompt.
        done_tokens: tokens whose KV exists or is being computed: cached prefix, earlier chunks,
            the chunk of a batch in flight.
        weight: what meeting this deadline is worth, relative to other requests.
    """

    id: int
    arrival_s: float
    deadline_s: float
    total_tokens: int
    done_tokens: int = 0
    weight: float = 1.0

    def check(self) -> None:
        """Raise `InputError` for values under which no order makes sense."""
        if not (math.isfinite(self.arrival_s) and math.isfinite(self.deadline_s)):
            raise InputError(f"job {self.id}: arrival_s and deadline_s must be finite")
        if self.deadline_s <= self.arrival_s:
            raise InputError(f"job {self.id}: deadline_s must lie after arrival_s")
        if not 0 <= self.done_tokens < self.total_tokens:
            raise InputError(
                f"job {self.id}: {self.done_tokens} of {self.total_tokens} tokens done; "
                "allowed are 0 to one less than total_tokens"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError(f"job {self.id}: weight {self.weight!r} must be finite and positive")


class PlannedChunk(NamedTuple):
    """`tokens` new tokens of job `id`, to be computed in the planned batch."""

    id: int
    tokens: int


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """One prefill batch.

    Attributes:
        chunks: what to compute, most urgent first; empty only when no job or no budget was left.
        batch_s: predicted duration of the batch, seconds.
    """

    chunks: list[PlannedChunk]
    batch_s: float


class PrefillQueue(Protocol):
    """What the engine and the simulator need of a prefill policy. Updates between decisions are
    incremental; `plan` changes no job."""

    def __len__(self) -> int: ...

    def add(self, job: PrefillJob) -> None: ...

    def progress(self, job_id: int, done_tokens: int) -> None: ...

    def remove(self, job_id: int) -> None: ...

    def plan(self, start_s: float, budget_tokens: int, page_tokens: int = 1) -> PrefillPlan: ...
