"""Prefill orders to compare with: a rank function each, over one incremental queue."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.errors import InputError
from kairos.latency.prefill import Chunk, PrefillModel
from kairos.policy.jobs import PlannedChunk, PrefillJob, PrefillPlan
from kairos.validation import check_choice

Floats = npt.NDArray[np.float64]
Jobs = npt.NDArray[Any]

_ROW = np.dtype(
    [
        ("id", np.int64),
        ("arrival", np.float64),
        ("deadline", np.float64),
        ("total", np.int64),
        ("done", np.int64),
        ("cached", np.int64),
        ("left_s", np.float64),
        ("waited", np.int64),
    ]
)


MAX_MATCHED = 128
"""Longest queue for which SGLang looks up cached prefixes (`WAITING_QUEUE_PREFIX_MATCH_MAX`).

Orders that need them (lpm, hrrn) serve longer queues in the order of arrival.
"""


@dataclass(frozen=True, slots=True)
class Baseline:
    """An order of prefill work.

    Attributes:
        rank: sort keys of the jobs at a start time, lowest first; ties break by arrival, then id.
        preemptive: whether a started prompt may wait for others between its chunks. SGLang always
            finishes a started prompt first.
        shares_batch: whether the chunk of a started prompt leaves budget for shorter prompts that
            fit whole.
    """

    rank: Callable[[Jobs, float], Floats]
    preemptive: bool
    shares_batch: bool = False


def _infeasible(jobs: Jobs, start_s: float) -> npt.NDArray[np.bool_]:
    return np.asarray(start_s + jobs["left_s"] > jobs["deadline"])


def _response_ratio(jobs: Jobs, start_s: float) -> Floats:
    return np.asarray(-(start_s - jobs["arrival"]) / jobs["left_s"])


def _token_ratio(jobs: Jobs, _: float) -> Floats:
    """SGLang's ratio: tokens that the server has computed meanwhile, over uncached tokens."""
    ratio = -jobs["waited"] / (jobs["total"] - jobs["cached"])
    return np.asarray(ratio if len(jobs) <= MAX_MATCHED else jobs["arrival"])


def _longest_prefix(jobs: Jobs, _: float) -> Floats:
    return np.asarray(
        -jobs["cached"].astype(float) if len(jobs) <= MAX_MATCHED else jobs["arrival"]
    )


BASELINES = {
    "fcfs": Baseline(lambda jobs, _: jobs["arrival"], preemptive=False),
    "lpm": Baseline(_longest_prefix, preemptive=False),
    "spf": Baseline(
        lambda jobs, _: jobs["total"] - jobs["cached"].astype(float),
        preemptive=False,
        shares_batch=True,
    ),
    "hrrn": Baseline(_response_ratio, preemptive=True),
    "hrrn-np": Baseline(_token_ratio, preemptive=False),
    "sjf": Baseline(lambda jobs, _: jobs["left_s"], preemptive=True),
    "sjf-np": Baseline(lambda jobs, _: jobs["left_s"], preemptive=False),
    "edf": Baseline(lambda jobs, _: jobs["deadline"], preemptive=True),
    "llf": Baseline(lambda jobs, _: jobs["deadline"] - jobs["left_s"], preemptive=True),
    "ff-edf": Baseline(
        # The addition keeps two keys in one number: infeasible jobs follow all deadlines.
        lambda jobs, start_s: np.where(
            _infeasible(jobs, start_s), 1e12 + jobs["left_s"], jobs["deadline"]
        ),
        preemptive=True,
    ),
}


def _budget_for_shorter(jobs: Jobs, budget_tokens: int, page_tokens: int) -> int:
    """Tokens of a batch that a started prompt leaves to shorter prompts.

    The rule is that of SGLang's `SchedulePolicy.shortest_prefill_chunk_limit`.

    Args:
        jobs: rows in the order of service; the first one is started.
        budget_tokens: new tokens of the batch.
        page_tokens: tokens of a KV page.
    """
    left = jobs["total"] - jobs["done"]
    pages = np.cumsum(-(-left[1:] // page_tokens) * page_tokens)
    fits = (left[1:] < left[0]) & (pages <= budget_tokens - page_tokens)
    count = len(fits) if fits.all() else int(np.argmin(fits))
    return int(pages[count - 1]) if count else 0


class RankedQueue:
    """Jobs in the order of a `Baseline`, in batches that fill the budget.

    Args:
        model: predicts batch times.
        chunk_tokens: new tokens of a full batch; spreads the fixed cost over remaining work.
        name: key of BASELINES.

    Raises:
        InputError: unknown name.
    """

    def __init__(self, model: PrefillModel, chunk_tokens: int, name: str) -> None:
        check_choice("prefill policy", name, tuple(BASELINES))
        self.model = model
        self._baseline = BASELINES[name]
        self._chunk_tokens = chunk_tokens
        self._rows = np.zeros(64, _ROW)
        self._at: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._at)

    def add(self, job: PrefillJob) -> None:
        """Queue a job.

        Raises:
            InputError: impossible values, or an id that is queued already.
        """
        job.check()
        if job.id in self._at:
            raise InputError(f"job {job.id} is queued already")
        n = len(self._at)
        if n == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._at[job.id] = n
        self._rows[n] = (
            job.id,
            job.arrival_s,
            job.deadline_s,
            job.total_tokens,
            job.done_tokens,
            job.done_tokens,
            self._left_s(job.done_tokens, job.total_tokens),
            0,
        )

    def progress(self, job_id: int, done_tokens: int) -> None:
        """Set the computed tokens of a queued job; KeyError if it is not queued."""
        row = self._rows[self._at[job_id]]
        row["done"] = done_tokens
        row["left_s"] = self._left_s(done_tokens, int(row["total"]))

    def remove(self, job_id: int) -> None:
        """Take a job out; KeyError if it is not queued."""
        at = self._at.pop(job_id)
        last = len(self._at)
        if at != last:
            self._rows[at] = self._rows[last]
            self._at[int(self._rows[at]["id"])] = at

    def plan(self, start_s: float, budget_tokens: int, page_tokens: int = 1) -> PrefillPlan:
        """Plan the next batch; changes no job.

        Args:
            start_s: start of the batch, seconds.
            budget_tokens: new tokens of the batch.
            page_tokens: tokens of a KV page; chunks of unfinished prompts are whole pages.
        """
        jobs = self._rows[: len(self._at)]
        rank = self._baseline.rank(jobs, start_s)
        started = jobs["done"] > jobs["cached"]
        keys = [jobs["id"], jobs["arrival"], rank]
        order = np.lexsort(keys if self._baseline.preemptive else [*keys, ~started])
        chunks: list[PlannedChunk] = []
        work: list[Chunk] = []
        shared = self._baseline.shares_batch and len(order) > 0 and bool(started[order[0]])
        unfinished = False
        first_tokens = budget_tokens
        if shared:
            first_tokens -= _budget_for_shorter(jobs[order], budget_tokens, page_tokens)
        for at in order:
            row = jobs[at]
            remaining = int(row["total"] - row["done"])
            tokens = min(remaining, budget_tokens if chunks else first_tokens)
            if unfinished and tokens < remaining:
                break  # one unfinished prompt at a time
            if tokens < remaining:
                tokens -= tokens % page_tokens
            if tokens <= 0:
                break
            chunks.append(PlannedChunk(int(row["id"]), tokens))
            work.append(Chunk(int(row["done"]), tokens))
            budget_tokens -= tokens
            unfinished |= shared and tokens < remaining
        jobs["waited"] += sum(chunk.tokens for chunk in chunks)
        return PrefillPlan(chunks, self.model.batch_s(work) if work else 0.0)

    def _left_s(self, done: int, total: int) -> float:
        return self.model.remaining_s(done, total, self._chunk_tokens)
