"""One simulated prefill instance."""

from collections.abc import Callable

from kairos.latency import Chunk, InstanceLimits, PrefillModel
from kairos.latency.calibration import Calibration
from kairos.policy.jobs import PrefillJob, PrefillPlan, PrefillQueue


class SimulatedBatch:
    """A composed batch: its true duration and the requests whose prompt it completes."""

    def __init__(self, plan: PrefillPlan, model_s: float, true_s: float, last: list[int]) -> None:
        self.plan = plan
        self.model_s = model_s
        self.true_s = true_s
        self.last = last


class PrefillServer:
    """Args:
    queue: the policy.
    model: true batch times; `noise()` multiplies each.
    done: computed tokens per request, shared by all instances.
    total: prompt length per request.
    on_start: told every request that gets a chunk, so that no other instance takes it.

    `free_s` is the predicted end of what is composed already.
    """

    def __init__(
        self,
        queue: PrefillQueue,
        model: PrefillModel,
        limits: InstanceLimits,
        lookahead: bool,
        noise: Callable[[], float],
        done: list[int],
        total: list[int],
        on_start: Callable[[int, "PrefillServer"], None],
    ) -> None:
        self.queue = queue
        self.busy_s = 0.0
        self.tokens = 0
        self.pending_tokens = 0
        self.calibration = Calibration()
        self._model = model
        self._limits = limits
        self._lookahead = lookahead
        self._noise = noise
        self._done = done
        self._total = total
        self._on_start = on_start
        self.free_s = 0.0
        self._running: SimulatedBatch | None = None
        self._next: SimulatedBatch | None = None

    def add(self, job: PrefillJob) -> None:
        self.queue.add(job)
        self.pending_tokens += job.total_tokens - job.done_tokens

    def drop(self, request: int) -> None:
        """Another instance took the request."""
        self.queue.remove(request)
        self.pending_tokens -= self._total[request] - self._done[request]

    @property
    def idle(self) -> bool:
        return self._running is None

    def start(self, now_s: float) -> float | None:
        """Launch a batch; returns its end, None when there is nothing to do."""
        batch = self._next or self._compose(now_s)
        self._running, self._next = batch, None
        if batch is None:
            return None
        self.busy_s += batch.true_s
        self.free_s = now_s + batch.plan.batch_s
        return now_s + batch.true_s

    def look_ahead(self) -> None:
        """Compose the batch after the running one as soon as there is work for it, as upstream's
        overlap schedule does."""
        if not self._lookahead or self._running is None or self._next is not None:
            return
        self._next = self._compose(self.free_s)
        if self._next is not None:
            self.free_s += self._next.plan.batch_s

    def finish(self) -> list[int]:
        """The running batch ended: the requests that got their first token."""
        batch = self._running
        assert batch is not None
        self._running = None
        return batch.last

    def _compose(self, start_s: float) -> SimulatedBatch | None:
        if not len(self.queue):
            return None
        plan = self.queue.plan(start_s, self._limits.chunk_tokens)
        if not plan.chunks:
            return None
        work, last = [], []
        for request, tokens in plan.chunks:
            self._on_start(request, self)
            work.append(Chunk(self._done[request], tokens))
            self._done[request] += tokens
            self.tokens += tokens
            self.pending_tokens -= tokens
            if self._done[request] == self._total[request]:
                self.queue.remove(request)
                last.append(request)
            else:
                self.queue.progress(request, self._done[request])
        model_s = self._model.batch_s(work)
        return SimulatedBatch(plan, model_s, model_s * self._noise(), last)
