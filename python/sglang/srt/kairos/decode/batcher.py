"""Decode steps of selected requests, carried out on upstream's running batch.

Between two passes of the event loop the running batch always holds every request, skipped ones
included. So aborts, retraction, pauses, load figures and leak checks see what they expect. The
batch is split when upstream updates it for a step, and merged once the step is launched.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from sglang.srt.kairos.decode.held_tokens import HeldTokens
from sglang.srt.kairos.decode.retraction import RetractionOrder
from sglang.srt.kairos.decode.rows import all_set, defer_clock
from sglang.srt.kairos.decode.selection import DecodeSelection
from sglang.srt.kairos.decode.split import LaunchedSplit, SplitBatch, merged, split
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import Req, ScheduleBatch, StepScheduler

# While all requests have time to spare, selection is skipped for this many steps.
UNSELECTED_STEPS = 8

S = TypeVar("S", bound=StepScheduler)
Update = Callable[[S, ScheduleBatch], ScheduleBatch | None]


class DecodeBatcher:
    """Prepares the decode steps of one upstream scheduler.

    Args:
        selection: selects the requests of a step.
        clock: time of decisions.
        overlap: a step is selected while the step before it runs.
        retraction: order of retraction; None: upstream's order.
        refusal: why no request may be skipped on this server; None if requests may.

    Attributes:
        selection: as given.
        policy: the slack policy of the selection.
        rows: the requests of the running batch.
        selection_skipped: in the newest step all requests run and have time to spare.
    """

    def __init__(
        self,
        selection: DecodeSelection,
        clock: SharedClock,
        overlap: bool,
        retraction: RetractionOrder | None = None,
        refusal: str | None = None,
    ) -> None:
        self.selection = selection
        self.policy = selection.policy
        self.rows = selection.rows
        self.selection_skipped = False
        self._held: HeldTokens | None = selection.held
        self._counters = selection.counters
        self._clock = clock
        self._overlap = overlap
        self._retraction = retraction
        self._refusal = refusal
        self._split: SplitBatch | LaunchedSplit | None = None
        self._prepared_iter = 0  # of the selected batch before its launch
        self._in_flight_s = 0.0
        self._unselected = 0  # steps to come without a selection
        self._last_pause: tuple[float, float] | None = None
        self._retracted: list[Req] = []  # by a pause that has not ended
        self._end_s = -math.inf  # predicted end of the newest step

    def update(
        self, original: Update[S], scheduler: S, batch: ScheduleBatch
    ) -> ScheduleBatch | None:
        """Have upstream prepare a step of the selected requests.

        Runs around `Scheduler.update_running_batch`, with its arguments and its result.
        """
        if self._refusal is not None:
            return original(scheduler, batch)
        begin = time.perf_counter()
        # The next result has one more token, so held first tokens cannot wait any longer.
        self.stream_due(scheduler)
        if self.selection_skipped and self._unselected and batch.reqs is self.rows.reqs:
            return self._update_unselected(original, scheduler, batch, begin)
        self.selection_skipped = False
        batch = self._recover(batch)
        if [req for req in batch.reqs if req.finished_reason is not None]:
            batch.filter_batch()
            batch.batch_is_full = False
        if not batch.reqs:
            self._complete(self.rows.clear())
            self._split = None
            return original(scheduler, batch)
        start_s = self._select(scheduler, batch)
        if self._retraction is not None:
            self._retraction.rank(batch, start_s)
        self._counters.decide_s.append(time.perf_counter() - begin)
        rows = self.rows.rows
        if not all_set(rows["runs"]):
            return self._update_split(original, scheduler, batch)
        self._split = None
        holds = self._held is not None and self._held.count
        if not holds and self.policy.all_run_for(rows, start_s, UNSELECTED_STEPS):
            self.selection_skipped = True
            self._unselected = UNSELECTED_STEPS
        return self._updated(original, scheduler, batch)

    def merge_launched(self, scheduler: StepScheduler) -> None:
        """Merge the running batch if the selected requests have been launched.

        Due before anything else reads the running batch. A launch rebinds tensors of its batch, so
        the batch is not merged before.
        """
        prepared = self._split
        if not isinstance(prepared, SplitBatch):
            return
        batch = prepared.selected
        if batch is not scheduler.running_batch or batch.forward_iter == self._prepared_iter:
            return
        begin = time.perf_counter()
        whole = merged(batch, prepared.skipped)
        if len(whole.reqs) == len(self.rows.reqs):
            self.rows.reqs = whole.reqs  # in the order that `_update_split` gave the rows
        scheduler.running_batch = whole
        self._split = LaunchedSplit(batch, prepared.skipped, whole)
        self._counters.merge_s.append(time.perf_counter() - begin)

    def settle(self, scheduler: StepScheduler) -> None:
        """Take in a pause, and requests that left without a step; once in each pass."""
        self._note_pauses(scheduler)
        if self.rows.reqs and not scheduler.running_batch.reqs:
            left = self.rows.clear()
            if scheduler._engine_paused:
                self._retracted = [req for req in left if req.finished_reason is None]
            self._complete(left)
            self._split = None

    def stream_due(self, scheduler: StepScheduler) -> None:
        """Stream first tokens that were held until the start of the selected step.

        That step starts when the result of the step before it has been processed.
        """
        if self._held is not None:
            _stream(scheduler, self._held.take_due())

    def snapshot(self) -> dict[str, object]:
        """Return counters for /server_info."""
        return {
            "skipping": "on" if self._refusal is None else f"off: {self._refusal}",
            "skipped": 0 if self._split is None else len(self._split.skipped.reqs),
            "period": self.selection.period(self._in_flight_s),
            "max_batch": self.policy.max_batch,
            **self._counters.snapshot(),
        }

    def _start_s(self, scheduler: StepScheduler, now: float) -> float:
        """Start of the step that is prepared at `now`."""
        # Under the overlap schedule the step before this one is still to run.
        return now + (self._in_flight_s if self._overlap and scheduler.last_batch else 0.0)

    def _select(self, scheduler: StepScheduler, batch: ScheduleBatch) -> float:
        """Select the requests of the step, and return its start, monotonic seconds."""
        now = self._clock.now()
        start_s = self._start_s(scheduler, now)
        lengths = batch.seq_lens_cpu
        assert lengths is not None, "skipping is refused where lengths are on the device only"
        left = self.rows.sync(batch.reqs, lengths.numpy(), now)
        if left is not None:
            # The split before this step was of other requests.
            self._split = None
            self._complete(left)
            if self._held is not None:
                self._held.follow(self.rows.rows, batch.reqs)
        step_s = self.selection.select(start_s, left is not None, self._in_flight_s)
        rows = self.rows.rows
        if not all_set(rows["runs"]):
            step_s = self.selection.restrict(batch, start_s, step_s)
        end_s = start_s + step_s
        if self._held is not None and self._held.count:
            _stream(scheduler, self._held.release(rows, batch.reqs, start_s, end_s, now))
        runs = rows["runs"]
        rows["last_token_s"][slice(None) if all_set(runs) else runs] = end_s
        self._in_flight_s = step_s
        self._end_s = end_s
        self._counters.steps += 1
        return start_s

    def _note_pauses(self, scheduler: StepScheduler) -> None:
        """Stop the TPOT clocks for the time of a pause.

        Every rank sees the same pauses, and measures them by its own clock. So the time runs from
        the end of the newest step, on the clock of decisions.
        """
        pauses = scheduler._pause_intervals  # upstream drops old ones
        if not pauses or pauses[-1] == self._last_pause:
            return
        self._last_pause = pauses[-1]
        self.selection_skipped = False
        paused_s = self._clock.now() - self._end_s
        if math.isfinite(paused_s) and paused_s > 0.0:
            self.rows.defer_clocks(paused_s)
            for req in self._retracted:
                defer_clock(req, paused_s)
        self._retracted = []

    def _update_unselected(
        self, original: Update[S], scheduler: S, batch: ScheduleBatch, begin: float
    ) -> ScheduleBatch | None:
        """Prepare a step of all requests, which `SlackPolicy.all_run_for` has foreseen.

        Args:
            begin: when the update began, `time.perf_counter` seconds.
        """
        self._unselected -= 1
        self.selection.step_passed()
        self._counters.steps += 1
        self._counters.steps_selection_skipped += 1
        start_s = self._start_s(scheduler, self._clock.now())
        if self._retraction is not None:
            self._retraction.rank(batch, start_s)
        self._counters.decide_s.append(time.perf_counter() - begin)
        updated = self._updated(original, scheduler, batch)
        if updated is not None and updated.reqs is self.rows.reqs:
            self._end_s = start_s + self._in_flight_s
            self.rows.step_of_all(self._end_s)
        return updated

    def _recover(self, batch: ScheduleBatch) -> ScheduleBatch:
        """Return the batch of all requests, also when the last split was never launched."""
        prepared = self._split
        if not isinstance(prepared, SplitBatch):
            return batch
        self._split = None
        return prepared.merged()

    def _update_split(
        self, original: Update[S], scheduler: S, batch: ScheduleBatch
    ) -> ScheduleBatch | None:
        """Have upstream update the selected requests alone."""
        prepared = self._split_batch(batch)
        self._split = prepared
        updated = self._updated(original, scheduler, prepared.selected)
        if updated is None or not updated.reqs:
            # Upstream retracted all requests that were to run.
            self._split = None
            return self._updated(original, scheduler, prepared.merged())
        if updated is not prepared.selected:
            self._split = SplitBatch(updated, prepared.skipped)
        self._prepared_iter = updated.forward_iter
        self._counters.steps_with_skips += 1
        return updated

    def _split_batch(self, batch: ScheduleBatch) -> SplitBatch:
        """Split the running batch, or take the last split again if the selection is the same."""
        begin = time.perf_counter()
        runs = self.rows.rows["runs"]
        run = np.flatnonzero(runs)
        last = self._split
        if (
            isinstance(last, LaunchedSplit)
            and last.merged is batch
            and len(run) == len(last.selected.reqs)
            and all_set(runs[: len(run)])
        ):
            # Only lengths have changed, in the batch that ran.
            return SplitBatch(last.selected, last.skipped)
        skip = np.flatnonzero(~runs)
        self._clock.decided(*(int(number) for number in self.rows.rows["id"][skip]))
        prepared = split(batch, run.tolist(), skip.tolist())
        self.rows.reorder(np.concatenate([run, skip]))
        self._counters.skips += len(skip)
        self._counters.split_s.append(time.perf_counter() - begin)
        return prepared

    def _updated(
        self, original: Update[S], scheduler: S, batch: ScheduleBatch
    ) -> ScheduleBatch | None:
        """Call upstream, and count retractions."""
        before = batch.reqs
        updated = original(scheduler, batch)
        if updated is not None and len(updated.reqs) < len(before):
            self._counters.retractions += sum(req.is_retracted for req in before)
        return updated

    def _complete(self, left: Sequence[Req]) -> None:
        """Learn output lengths from requests that ended without an abort."""
        for req in left:
            reason = req.finished_reason
            if reason is not None and reason.to_json()["type"] != "abort":
                # The first token came with the KV: lengths count the tokens made here.
                made = max(len(req.output_ids) - 1, 0)
                self.policy.completed(self.rows.length_group(req), made)


def _stream(scheduler: StepScheduler, released: list[Req]) -> None:
    """Stream the first tokens of requests."""
    if released:
        logprob = any(req.return_logprob for req in released)
        scheduler.output_streamer.stream_output(released, logprob)
