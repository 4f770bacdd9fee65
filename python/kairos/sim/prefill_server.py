"""One simulated prefill instance."""

from collections.abc import Callable
from typing import NamedTuple

from kairos.latency import Chunk, PrefillModel
from kairos.policy.jobs import PrefillJob, PrefillQueue


def exact() -> float:
    """Return the noise of durations that are exactly as modelled."""
    return 1.0


class PrefillEngine(NamedTuple):
    """How a simulated prefill instance runs.

    Attributes:
        model: true batch times.
        chunk_tokens: new tokens of a full batch.
        lookahead: whether a batch is composed while the one before it runs.
        noise: factor of the next batch's true time.
    """

    model: PrefillModel
    chunk_tokens: int
    lookahead: bool = True
    noise: Callable[[], float] = exact


class PromptProgress(NamedTuple):
    """Prompt tokens by request; shared by all instances.

    Attributes:
        done: computed tokens, the cached prefix included.
        total: prompt length.
    """

    done: list[int]
    total: list[int]


class SimulatedBatch(NamedTuple):
    """A composed prefill batch.

    Attributes:
        predicted_s: duration that the policy predicts, seconds.
        true_s: duration that the batch takes, seconds.
        completed: requests whose prompt the batch completes.
    """

    predicted_s: float
    true_s: float
    completed: list[int]


class PrefillServer:
    """A prefill instance that composes batches from its queue.

    Args:
        queue: the policy.
        engine: how the instance runs.
        prompts: progress of all requests.
        on_chunk: called with each request that gets a chunk and with this server.

    Attributes:
        queue: the policy.
        idle: whether no batch runs.
        free_s: predicted end of the batches composed so far, seconds.
        busy_s: seconds of all batches.
        tokens: prompt tokens computed.
        pending_tokens: prompt tokens that the queue still has to compute.
    """

    def __init__(
        self,
        queue: PrefillQueue,
        engine: PrefillEngine,
        prompts: PromptProgress,
        on_chunk: Callable[[int, "PrefillServer"], None] | None = None,
    ) -> None:
        self.queue = queue
        self.idle = True
        self.free_s = 0.0
        self.busy_s = 0.0
        self.tokens = 0
        self.pending_tokens = 0
        self._engine = engine
        self._prompts = prompts
        self._on_chunk = on_chunk
        self._next: SimulatedBatch | None = None

    def add(self, job: PrefillJob) -> None:
        """Queue a request."""
        self.queue.add(job)
        self.pending_tokens += job.total_tokens - job.done_tokens

    def drop(self, request: int) -> None:
        """Remove a request that another instance has started."""
        self.queue.remove(request)
        self.pending_tokens -= self._prompts.total[request] - self._prompts.done[request]

    def start(self, now_s: float) -> SimulatedBatch | None:
        """Run the next batch from `now_s` on; returns it, or None without work."""
        batch = self._next or self._compose(now_s)
        self._next = None
        self.idle = batch is None
        if batch is not None:
            self.busy_s += batch.true_s
            self.free_s = now_s + batch.predicted_s
        return batch

    def look_ahead(self) -> None:
        """Compose the batch after the running one as soon as there is work for it.

        The overlap schedule of SGLang does the same.
        """
        if not self._engine.lookahead or self.idle or self._next is not None:
            return
        self._next = self._compose(self.free_s)
        if self._next is not None:
            self.free_s += self._next.predicted_s

    def finish(self) -> None:
        """End the running batch."""
        self.idle = True

    def _compose(self, start_s: float) -> SimulatedBatch | None:
        if not len(self.queue):
            return None
        plan = self.queue.plan(start_s, self._engine.chunk_tokens)
        if not plan.chunks:
            return None
        done, total = self._prompts
        work, completed = [], []
        for request, tokens in plan.chunks:
            if self._on_chunk is not None:
                self._on_chunk(request, self)
            work.append(Chunk(done[request], tokens))
            done[request] += tokens
            self.tokens += tokens
            self.pending_tokens -= tokens
            if done[request] == total[request]:
                self.queue.remove(request)
                completed.append(request)
            else:
                self.queue.progress(request, done[request])
        true_s = self._engine.model.batch_s(work) * self._engine.noise()
        return SimulatedBatch(plan.batch_s, true_s, completed)
