"""Urgency: order and pack prefill work so that as many requests as possible meet their TTFT SLO.

The method and its parameters: docs/explanation/urgency.md.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kairos.errors import InputError
from kairos.latency.prefill import PrefillModel
from kairos.policy.best_effort import STARVED_AFTER_S, ObjectiveTraffic
from kairos.policy.jobs import PlannedChunk, PrefillJob, PrefillPlan
from kairos.policy.sorted_rows import SortedRows
from kairos.policy.starvation import StarvationCredit
from kairos.validation import Range, check_ranges

if TYPE_CHECKING:  # importing it at run time imports numba
    from kairos.policy.urgency_kernel import PlanParams

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
    "best_effort_after_s": Range(0.0, math.inf),
}


@dataclass(frozen=True, slots=True)
class UrgencyParams:
    """Parameters of the urgency policy.

    Attributes:
        slice_s: longest batch, seconds. It bounds how long an arrival waits.
        infeasible_slice_s: longest batch to which jobs that are not feasible are added, seconds.
        min_chunk: shortest chunk that does not complete its prompt, tokens. Shorter ones pay the
            fixed cost too often.
        reserve: share of the time before a deadline, beyond the first `reserve_after_s`, that a
            feasible job leaves to more urgent jobs yet to arrive.
        reserve_after_s: seconds that need no reserve; at least the shortest SLO seen, because no
            arrival is more urgent where all SLOs are alike.
        post_prefill_s: from the end of prefill to the client's first token, seconds.
        starvation_share: share of engine time for starved jobs; 0 disables.
        starvation_after: a job that is not feasible is starved after this multiple of its SLO.
        starvation_credit_s: the share accumulates up to this many seconds.
        best_effort_after_s: a best-effort job is starved after this wait, seconds.
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
    best_effort_after_s: float = STARVED_AFTER_S

    def __post_init__(self) -> None:
        check_ranges("urgency", self, _RANGES)

    def starved_after_s(self, slo_s: float) -> float:
        """Return the wait after which a job is starved, seconds.

        Args:
            slo_s: its TTFT objective, seconds; infinite for a best-effort job.
        """
        return self.starvation_after * slo_s if math.isfinite(slo_s) else self.best_effort_after_s


class UrgencyQueue:
    """Jobs that wait for prefill, kept sorted by deadline between decisions.

    The first construction in a process compiles or loads the kernels, which takes seconds once per
    machine.

    Args:
        model: predicts batch times.
        chunk_tokens: new tokens of a full batch, over which the fixed cost of a batch is spread.
        params: of the policy.

    Attributes:
        calibration: measured / predicted batch time.
        demotions: jobs that were feasible in one plan and not in the next.
        grants: plans that served a starved job out of the bounded share.
        shortest_slo_s: the shortest TTFT SLO of all jobs so far.
        traffic: jobs with deadlines; while none is expected, best-effort jobs fill batches as on
            SGLang.
    """

    def __init__(
        self, model: PrefillModel, chunk_tokens: int, params: UrgencyParams | None = None
    ) -> None:
        from kairos.policy import urgency_kernel

        self.model = model
        self.params = params or UrgencyParams()
        self.calibration = 1.0
        self.shortest_slo_s = math.inf
        self.traffic = ObjectiveTraffic()
        self.demotions = 0
        self.grants = 0
        self._kernel = urgency_kernel
        self._chunk_tokens = chunk_tokens
        self._jobs = SortedRows(urgency_kernel.ROW)
        self._credit = StarvationCredit(
            self.params.starvation_share, self.params.starvation_credit_s
        )
        # Of the last preview: states of the rows, seconds of the batch, credit that it leaves.
        self._previewed = np.empty(0, np.int8), 0.0, 0.0
        self.plan(0.0, 1)  # compiles

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: PrefillJob) -> None:
        """Queue a job.

        Raises:
            InputError: impossible values, or an id that is queued already.
        """
        job.check()
        if job.id in self._jobs:
            raise InputError(f"job {job.id} is queued already")
        if math.isfinite(job.deadline_s):
            self.shortest_slo_s = min(self.shortest_slo_s, job.deadline_s - job.arrival_s)
            self.traffic.note(job.arrival_s)
        self._jobs.add(
            job.deadline_s,
            job.id,
            (
                job.deadline_s,
                job.id,
                job.arrival_s,
                job.total_tokens,
                job.done_tokens,
                job.weight,
                False,
            ),
        )

    def progress(self, job_id: int, done_tokens: int) -> None:
        """Set the computed tokens of a queued job.

        Raises:
            KeyError: the job is not queued.
            InputError: the prompt is not that long. A completed job has to be removed.
        """
        row = self._jobs.live[self._jobs.index(job_id)]
        if not 0 <= done_tokens < row["total"]:
            raise InputError(
                f"job {job_id}: {done_tokens} of {row['total']} tokens done; "
                "allowed are 0 to one less than total_tokens"
            )
        row["done"] = done_tokens

    def remove(self, job_id: int) -> None:
        """Remove a job that is completed or aborted.

        Raises:
            KeyError: the job is not queued.
        """
        self._jobs.remove(job_id)

    def job(self, job_id: int) -> tuple[float, int, int]:
        """Return deadline, total tokens and computed tokens of a queued job.

        Raises:
            KeyError: the job is not queued.
        """
        row = self._jobs.live[self._jobs.index(job_id)]
        return float(row["deadline"]), int(row["total"]), int(row["done"])

    def plan(self, start_s: float, budget_tokens: int, page_tokens: int = 1) -> PrefillPlan:
        """Compose the next batch.

        Args:
            start_s: when it starts: now, or the predicted end of the batch in flight.
            budget_tokens: new tokens allowed in it.
            page_tokens: chunks that do not complete their prompt are multiples of this.

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
        """Compose the next batch as `plan` does, without counting or charging it.

        Args:
            start_s: see `plan`.
            budget_tokens: see `plan`.
            page_tokens: see `plan`.
            slice_s: longest batch, if shorter than the parameters allow.

        Raises:
            InputError: the start is not finite.
        """
        if not math.isfinite(start_s):
            raise InputError(f"urgency: a batch starts at {start_s!r} s; it must be finite")
        rows = self._jobs.live
        state = np.empty(len(rows), np.int8)
        out = np.empty((min(len(rows), budget_tokens), 2), np.int64)
        self.note_objectives(start_s)
        params = self._plan_params(budget_tokens, page_tokens, slice_s)
        if not self.traffic.expected(start_s):
            params = params._replace(best_effort_slice_s=slice_s)
        count, batch_s, credit_s = self._kernel.plan(
            rows, start_s, params, self._credit.balance, state, out
        )
        self._previewed = state, batch_s, credit_s
        return PrefillPlan([PlannedChunk(*chunk) for chunk in out[:count].tolist()], batch_s)

    def note_objectives(self, now_s: float) -> None:
        """Note in `traffic` whether a job with a deadline is queued."""
        rows = self._jobs.live
        # They are sorted by deadline.
        if len(rows) and math.isfinite(rows[0]["deadline"]):
            self.traffic.note(now_s)

    def commit(self) -> None:
        """Count and charge the plan of the last `preview`. No job may have changed since."""
        state, batch_s, credit_s = self._previewed
        self.demotions += int(self._kernel.note_feasible(self._jobs.live, state))
        self.grants += credit_s < self._credit.balance
        self._credit.balance = credit_s
        self._credit.earn(batch_s)

    def order(self, start_s: float) -> list[int]:
        """Return the ids of all jobs, most urgent first.

        Feasible jobs go by deadline, deferred ones by remaining work, infeasible ones by the
        multiple of their SLO that they take, best-effort ones by arrival.

        Args:
            start_s: when the next batch starts.
        """
        rows = self._jobs.live
        state = np.empty(len(rows), np.int8)
        keys = self._kernel.sort_keys(rows, start_s, self._plan_params(), state)
        # Rows are sorted by (deadline, id), and so are equal keys.
        ids: list[int] = rows["id"][np.lexsort((keys, state))].tolist()
        return ids

    def _plan_params(
        self, budget_tokens: int = 1, page_tokens: int = 1, slice_s: float = math.inf
    ) -> "PlanParams":
        """Return the kernel's parameters, the model's coefficients calibrated."""
        m, c, p = self.model, self.calibration, self.params
        return self._kernel.PlanParams(
            m.fixed_s * c,
            m.weight_floor_s * c,
            m.per_token_s * c,
            m.per_token_context_s * c,
            self._chunk_tokens,
            budget_tokens,
            page_tokens,
            p.min_chunk,
            p.post_prefill_s,
            p.reserve,
            max(p.reserve_after_s, self.shortest_slo_s),
            min(p.slice_s, slice_s),
            min(p.infeasible_slice_s, slice_s),
            min(p.infeasible_slice_s, slice_s),
            p.starvation_after,
            p.best_effort_after_s,
        )


def plan_batch(
    jobs: Iterable[PrefillJob],
    model: PrefillModel,
    start_s: float,
    budget_tokens: int,
    page_tokens: int = 1,
    params: UrgencyParams | None = None,
) -> PrefillPlan:
    """Compose one batch from scratch, for callers that hold no queue.

    Without a queue there is no record of served time, hence no share for starved jobs.

    Args:
        jobs: that wait.
        model: predicts batch times.
        start_s: see `UrgencyQueue.plan`.
        budget_tokens: see `UrgencyQueue.plan`.
        page_tokens: see `UrgencyQueue.plan`.
        params: of the policy.
    """
    queue = UrgencyQueue(model, budget_tokens, params)
    for job in jobs:
        queue.add(job)
    return queue.plan(start_s, budget_tokens, page_tokens)
