"""Jobs and plans: the inputs and outputs of a prefill policy."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kairos.errors import InputError


@dataclass(frozen=True, slots=True)
class PrefillJob:
    """A request that waits for prefill, started or not.

    Attributes:
        id: breaks ties; must be the same on all tensor-parallel ranks (the bootstrap room).
        arrival_s: when the request arrived, seconds on the policy's clock.
        deadline_s: when its first token is due, seconds on the same clock; after `arrival_s`.
            Infinite for a best-effort job.
        total_tokens: length of the prompt.
        done_tokens: tokens whose KV exists or is being computed: cached prefix, earlier chunks,
            the chunk of a batch in flight.
        weight: value of meeting this deadline, relative to other requests.
    """

    id: int
    arrival_s: float
    deadline_s: float
    total_tokens: int
    done_tokens: int = 0
    weight: float = 1.0

    def check(self) -> None:
        """Raise `InputError` for values under which no order is defined."""
        if not math.isfinite(self.arrival_s):
            raise InputError(f"job {self.id}: arrival_s must be finite")
        # A NaN compares false, too.
        if not self.deadline_s > self.arrival_s:
            raise InputError(f"job {self.id}: deadline_s must lie after arrival_s")
        if not 0 <= self.done_tokens < self.total_tokens:
            raise InputError(
                f"job {self.id}: {self.done_tokens} of {self.total_tokens} tokens done; "
                "allowed are 0 to one less than total_tokens"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError(f"job {self.id}: weight {self.weight!r} must be finite and positive")


class PlannedChunk(NamedTuple):
    """A part of one prompt in a planned batch.

    Attributes:
        id: of the job.
        tokens: new tokens to compute.
    """

    id: int
    tokens: int


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """One prefill batch.

    Attributes:
        chunks: parts of prompts, most urgent first; empty only if there is no job or no budget.
        batch_s: predicted duration of the batch, seconds.
    """

    chunks: list[PlannedChunk]
    batch_s: float


class PrefillQueue(Protocol):
    """The interface of a prefill policy for the engine and the simulator.

    Updates between decisions are incremental; `plan` changes no job.
    """

    def __len__(self) -> int: ...

    def add(self, job: PrefillJob) -> None:
        """Queue a job."""

    def progress(self, job_id: int, done_tokens: int) -> None:
        """Set the computed tokens of a queued job."""

    def remove(self, job_id: int) -> None:
        """Remove a job that is completed or aborted."""

    def plan(self, start_s: float, budget_tokens: int, page_tokens: int = 1) -> PrefillPlan:
        """Compose the batch that starts at `start_s`."""
