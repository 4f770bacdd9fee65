"""Urgency: order and pack prefill work so that as many requests as possible meet their TTFT SLO.

Method and parameters: docs/explanation/urgency.md.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.errors import InputError
from kairos.latency.prefill import PrefillModel
from kairos.policy.jobs import PlannedChunk, PrefillJob, PrefillPlan
from kairos.validation import Range, check_ranges

# The coefficients of a PrefillModel, as the kernels take them.
_Model = tuple[float, float, float, float]


_RANGES = {
    "slice_s": Range(1e-3, math.inf),
    "infeasible_slice_s": Range(1e-3, math.inf),
    "min_chunk": Range(1, 1_000_000),
    "reserve": Range(0.0, 0.99),
    "reserve_after_s": Range(0.0, math.inf),
    "post_prefill_s": Range(0.0, 60.0),
    "starvation_share": Range(0.0, 1.0),
    "starvation_after": Range(1.0, 1e6),
    "starvation_credit_s": Range(0.0, 3600.0),
}


@dataclass(frozen=True, slots=True)
class UrgencyParams:
    """Attributes:
    slice_s: a batch is cut at this duration, seconds, so that arrivals need not wait longer.
    infeasible_slice_s: the same for work that is not going to be on time anyway.
    min_chunk: a chunk is at least this long, tokens; smaller ones pay the fixed cost too often.
    reserve: share of the time before a deadline, beyond the first `reserve_after_s`, that a kept
        job leaves to more urgent ones yet to arrive.
    reserve_after_s: so many seconds need no reserve; never shorter than the shortest SLO seen:
        where all SLOs are alike no arrival is more urgent.
    post_prefill_s: what follows prefill before the client sees the first token, seconds.
    starvation_share: share of engine time for jobs given up that wait too long, 0 disables.
    starvation_after: "too long" is this many times the job's own TTFT SLO.
    starvation_credit_s: that share accumulates up to this many seconds.
    """

    slice_s: float = 0.25
    infeasible_slice_s: float = 0.1
    min_chunk: int = 256
    reserve: float = 0.6
    reserve_after_s: float = 2.0
    post_prefill_s: float = 0.0
    starvation_share: float = 0.01
    starvation_after: float = 8.0
    starvation_credit_s: float = 2.0

    def __post_init__(self) -> None:
        check_ranges("urgency", self, _RANGES)


class UrgencyQueue:
    """Jobs waiting for prefill, kept sorted by deadline between decisions.

    Args:
        model: predicts batch times.
        chunk_tokens: new tokens of a full batch; spreads the fixed cost of a batch.

    Attributes:
        calibration: measured / predicted batch time.
        demotions: jobs that one plan was going to have on time and the next one was not.
        grants: plans that served a starved job out of the bounded share.
        shortest_slo_s: the shortest TTFT SLO of all jobs so far.

    The first construction in a process compiles or loads the kernels (seconds, once per machine).
    """

    def __init__(
        self, model: PrefillModel, chunk_tokens: int, params: UrgencyParams | None = None
    ) -> None:
        from kairos.policy import urgency_kernel

        self.model = model
        self.params = params or UrgencyParams()
        self.calibration = 1.0
        self.shortest_slo_s = math.inf
        self.demotions = 0
        self.grants = 0
        self._kernel = urgency_kernel
        self._chunk_tokens = chunk_tokens
        self._keys: list[tuple[float, int]] = []
        self._deadline_of: dict[int, float] = {}
        self._rows = np.zeros(64, urgency_kernel.ROW)
        self._credit_s = 0.0
        self._previewed: tuple[npt.NDArray[np.int8], float, float]
        self.plan(0.0, 1)  # compiles

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, job: PrefillJob) -> None:
        """Raises:
        InputError: impossible values, or an id that is queued already.
        """
        job.check()
        if job.id in self._deadline_of:
            raise InputError(f"job {job.id} is queued already")
        n = len(self._keys)
        if n == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self.shortest_slo_s = min(self.shortest_slo_s, job.deadline_s - job.arrival_s)
        key = (job.deadline_s, job.id)
        at = bisect_left(self._keys, key)
        insort(self._keys, key)
        self._deadline_of[job.id] = job.deadline_s
        self._move(at, n, 1)
        self._rows[at] = (
            job.deadline_s,
            job.id,
            job.arrival_s,
            job.total_tokens,
            job.done_tokens,
            job.weight,
            False,
        )

    def progress(self, job_id: int, done_tokens: int) -> None:
        """Set the computed tokens of a queued job; KeyError if it is not queued.

        Raises:
            InputError: the prompt is not that long; a finished one is to be removed.
        """
        row = self._rows[self._find(job_id)]
        if not 0 <= done_tokens < row["total"]:
            raise InputError(
                f"job {job_id}: {done_tokens} of {row['total']} tokens done; "
                "allowed are 0 to one less than total_tokens"
            )
        row["done"] = done_tokens

    def remove(self, job_id: int) -> None:
        """Forget a job: finished or aborted; KeyError if it is not queued."""
        at = self._find(job_id)
        n = len(self._keys)
        self._move(at + 1, n, -1)
        del self._keys[at], self._deadline_of[job_id]

    def job(self, job_id: int) -> tuple[float, int, int]:
        """Deadline, total and computed tokens of a queued job; KeyError if it is not queued."""
        row = self._rows[self._find(job_id)]
        return float(row["deadline"]), int(row["total"]), int(row["done"])

    def plan(self, start_s: float, budget_tokens: int, page_tokens: int = 1) -> PrefillPlan:
        """The next batch.

        Args:
            start_s: when it will start: now, or the predicted end of the batch in flight.
            budget_tokens: new tokens allowed in it.
            page_tokens: chunks that do not finish their prompt are multiples of this.

        Raises:
            InputError: the start is not finite.
        """
        plan = self.preview(start_s, budget_tokens, page_tokens)
        self.commit()
        return plan

    def preview(
        self,
        start_s: float,
        budget_tokens: int,
        page_tokens: int = 1,
        slice_s: float = math.inf,
    ) -> PrefillPlan:
        """The same, but nothing is counted or charged until `commit`.

        Args:
            slice_s: longest batch, if shorter than the parameters'.
        """
        if not math.isfinite(start_s):
            raise InputError(f"urgency: a batch starts at {start_s!r} s; it must be finite")
        rows, state, left, model = self._classified(start_s)
        classified = state.copy()  # `pack` marks the chosen
        p = self.params
        out = np.empty((min(len(rows), budget_tokens), 2), np.int64)
        count, batch_s, credit = self._kernel.pack(
            rows,
            state,
            left,
            start_s,
            budget_tokens,
            page_tokens,
            model,
            p.post_prefill_s,
            min(p.slice_s, slice_s),
            min(p.infeasible_slice_s, slice_s),
            p.min_chunk,
            p.starvation_after,
            self._credit_s,
            out,
        )
        self._previewed = classified, credit, batch_s
        return PrefillPlan([PlannedChunk(*chunk) for chunk in out[:count].tolist()], batch_s)

    def commit(self) -> None:
        """The plan of the last `preview` is carried out. No job may have changed since."""
        state, credit, batch_s = self._previewed
        self.demotions += int(self._kernel.note_feasible(self._rows[: len(self._keys)], state))
        self.grants += credit < self._credit_s
        p = self.params
        self._credit_s = min(credit + p.starvation_share * batch_s, p.starvation_credit_s)

    def order(self, start_s: float) -> list[int]:
        """Ids of all jobs, most urgent first: those that will be on time by deadline, then those
        given up by remaining work, then those late already by how many of their SLOs they took."""
        rows, state, left, model = self._classified(start_s)
        key = self._kernel.sort_keys(rows, state, left, start_s, model)
        # Rows are sorted by (deadline, id), and so are equal keys.
        ids: list[int] = rows["id"][np.lexsort((key, state))].tolist()
        return ids

    def _classified(
        self, start_s: float
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int8], npt.NDArray[np.float64], _Model]:
        """Rows of the queue, the state and remaining seconds of each, and the calibrated model."""
        n = len(self._keys)
        rows = self._rows[:n]
        m, c = self.model, self.calibration
        model = (
            m.fixed_s * c,
            m.weight_floor_s * c,
            m.per_token_s * c,
            m.per_token_context_s * c,
        )
        state = np.empty(n, np.int8)
        left = np.empty(n)
        p = self.params
        self._kernel.classify(
            rows,
            start_s,
            model,
            self._chunk_tokens,
            p.post_prefill_s,
            p.reserve,
            max(p.reserve_after_s, self.shortest_slo_s),
            state,
            left,
        )
        return rows, state, left, model

    def _move(self, begin: int, end: int, by: int) -> None:
        """Shift rows. As bytes: numpy copies records one by one, which takes ten times as long."""
        size = self._rows.itemsize
        flat = self._rows.view(np.uint8)
        flat[(begin + by) * size : (end + by) * size] = flat[begin * size : end * size]

    def _find(self, job_id: int) -> int:
        return bisect_left(self._keys, (self._deadline_of[job_id], job_id))


def plan_batch(
    jobs: Iterable[PrefillJob],
    model: PrefillModel,
    start_s: float,
    budget_tokens: int,
    page_tokens: int = 1,
    params: UrgencyParams | None = None,
) -> PrefillPlan:
    """One decision from scratch, for callers that hold no queue; see `UrgencyQueue.plan`.

    Without a queue there is no memory of served time, hence no share for the starved.
    """
    queue = UrgencyQueue(model, budget_tokens, params)
    for job in jobs:
        queue.add(job)
    return queue.plan(start_s, budget_tokens, page_tokens)
