"""Prefill work of several priorities: the priority comes first, urgency within it."""

import math

from kairos.errors import InputError
from kairos.latency.prefill import Chunk, PrefillModel
from kairos.policy.jobs import PlannedChunk, PrefillJob, PrefillPlan
from kairos.policy.urgency import UrgencyParams, UrgencyQueue


class PriorityQueues:
    """One `UrgencyQueue` per priority.

    A batch takes the plan of the highest priority. Jobs of lower priorities join it as long as no
    prompt of a higher one misses its deadline and the batch stays within a slice.

    Args:
        model: predicts batch times.
        chunk_tokens: new tokens of a full batch.
        params: of urgency, the same for all priorities.

    Attributes:
        demotions: jobs that were feasible in one plan and not in the next.
        grants: batches that served a starved job out of the bounded share.
    """

    def __init__(
        self, model: PrefillModel, chunk_tokens: int, params: UrgencyParams | None = None
    ) -> None:
        self.demotions = 0
        self.grants = 0
        self._chunk_tokens = chunk_tokens
        # Made at once, because the first construction compiles.
        self._spare: UrgencyQueue | None = UrgencyQueue(model, chunk_tokens, params)
        self._model, self._factor, self._params = model, 1.0, self._spare.params
        self._traffic = self._spare.traffic  # of all priorities
        self._queues: dict[int, UrgencyQueue] = {}
        self._level_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def predict_with(self, model: PrefillModel, factor: float) -> None:
        """Predict batches as `factor` times the time of `model` from now on."""
        self._model, self._factor = model, factor

    def add(self, job: PrefillJob, level: int = 0) -> None:
        """Queue a job.

        Args:
            job: to queue.
            level: its priority; smaller levels go first.

        Raises:
            InputError: impossible values, or an id that is queued already, on any level.
        """
        job.check()
        if job.id in self._level_of:
            raise InputError(f"job {job.id} is queued already")
        if level not in self._queues:
            fresh, self._spare = self._spare, None
            queue = fresh or UrgencyQueue(self._model, self._chunk_tokens, self._params)
            queue.traffic = self._traffic
            self._queues[level] = queue
        self._queues[level].add(job)
        self._level_of[job.id] = level

    def progress(self, job_id: int, done_tokens: int) -> None:
        """Set the computed tokens of a queued job.

        Raises:
            KeyError: the job is not queued.
        """
        self._queues[self._level_of[job_id]].progress(job_id, done_tokens)

    def remove(self, job_id: int) -> None:
        """Remove a job that is completed or aborted.

        Raises:
            KeyError: the job is not queued.
        """
        level = self._level_of.pop(job_id)
        queue = self._queues[level]
        queue.remove(job_id)
        # The last queue stays, with its credit for starved jobs.
        if not len(queue) and len(self._queues) > 1:
            del self._queues[level]

    def expects_objectives(self, start_s: float) -> bool:
        """Return whether a job with a deadline is queued, or expected at `start_s`."""
        for queue in self._queues.values():
            queue.note_objectives(start_s)
        return self._traffic.expected(start_s)

    def plan(self, start_s: float, budget_tokens: int, page_tokens: int = 1) -> PrefillPlan:
        """Compose the next batch; see `UrgencyQueue.plan`."""
        chunks: list[PlannedChunk] = []
        work: list[Chunk] = []
        batch_s, due, budget, room_s = 0.0, math.inf, budget_tokens, math.inf
        for level in sorted(self._queues):
            queue = self._queues[level]
            queue.model, queue.calibration = self._model, self._factor
            if work:
                room_s = (
                    min(due - start_s - self._params.post_prefill_s, self._params.slice_s) - batch_s
                )
                budget = min(budget, int(room_s / (self._model.per_token_s * self._factor)))
                if budget < self._params.min_chunk:
                    break
            plan = queue.preview(start_s, budget, page_tokens, room_s)
            jobs = [(chunk, *queue.job(chunk.id)) for chunk in plan.chunks]
            joined = [*work, *(Chunk(done, chunk.tokens) for chunk, _, _, done in jobs)]
            joined_s = self._factor * self._model.batch_s(joined)
            ends_s = start_s + joined_s + self._params.post_prefill_s
            if work and (ends_s > due or joined_s > self._params.slice_s):
                continue
            self._commit(queue)
            work, batch_s = joined, joined_s
            chunks += plan.chunks
            budget -= sum(chunk.tokens for chunk in plan.chunks)
            due = min(
                [due]
                + [
                    deadline
                    for chunk, deadline, total, done in jobs
                    if done + chunk.tokens == total and deadline >= ends_s
                ]
            )
        return PrefillPlan(chunks, batch_s)

    def _commit(self, queue: UrgencyQueue) -> None:
        demotions, grants = queue.demotions, queue.grants
        queue.commit()
        self.demotions += queue.demotions - demotions
        self.grants += queue.grants - grants
