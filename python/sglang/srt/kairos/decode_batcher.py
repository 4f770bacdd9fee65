"""Who runs in the next decode step: the slack policy on upstream's running batch.

Between two passes of the event loop the running batch always holds every request, skipped ones too,
so that aborts, retraction, pauses, load figures and leak checks see what they expect. It is
taken apart when upstream updates it for a step, and put together right after the launch.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sglang.srt.kairos.decode_held_tokens import HeldTokens
from sglang.srt.kairos.decode_rows import DecodeRows
from sglang.srt.kairos.decode_split import merged, split
from sglang.srt.kairos.decode_steps import DecodeSteps
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.policy.slack import SlackPolicy

# Changing the batch may cost this share of the steps until the next selection, which may not be
# further away than so many steps.
CHANGE_SHARE = 0.02
LONGEST_PERIOD = 8

# While everybody has time to spare, nobody is looked at for so many steps.
SELECTION_SKIPPED_STEPS = 8

Original = Callable[[Any, Any], Any]


@dataclass(slots=True)
class SplitBatch:
    """A batch taken apart.

    Attributes:
        ran: upstream's batch of those that run.
        skipped: batch of the others.
        whole: the batch of all, once the step is launched; None before.
    """

    ran: Any
    skipped: Any
    whole: Any = None


class DecodeBatcher:
    """Selects for one upstream `Scheduler`.

    Args:
        overlap: a step is selected while the one before it runs.
        held: first tokens held back; None: they are streamed at once.
        refusal: why nobody may be parked on this server; None if they may.
        reload_s_per_token: what a retraction costs, seconds per token of context; None: upstream
            chooses whom to retract.

    Attributes:
        rows: the requests of the running batch.
        selection_skipped: in the newest step everybody runs and has time to spare.
    """

    def __init__(
        self,
        policy: SlackPolicy,
        rows: DecodeRows,
        steps: DecodeSteps,
        clock: SharedClock,
        overlap: bool,
        held: HeldTokens | None = None,
        refusal: str | None = None,
        reload_s_per_token: float | None = None,
    ) -> None:
        self.rows = rows
        self.policy = policy
        self._steps = steps
        self._clock = clock
        self._overlap = overlap
        self._held = held
        self._refusal = refusal
        self._reload_s_per_token = reload_s_per_token
        self._split: SplitBatch | None = None
        self._in_flight_s = 0.0
        self._since_selection = 0
        self.selection_skipped = False
        self._unselected = 0  # steps to come for which nobody need be looked at
        self._counts: Counter[str] = Counter()
        self._obstacles: Counter[str] = Counter()
        self._split_s: deque[float] = deque(maxlen=1024)
        self._merge_s: deque[float] = deque(maxlen=1024)
        self._decide_s: deque[float] = deque(maxlen=1024)

    def update(self, original: Original, scheduler: Any, batch: Any) -> Any:
        """Around `Scheduler.update_running_batch`: same arguments, same result."""
        if self._refusal is not None:
            return original(scheduler, batch)
        begin = time.perf_counter()
        self.begun(scheduler)  # at the latest: the next result has one token more
        if self.selection_skipped and self._unselected and batch.reqs is self.rows.reqs:
            return self._as_before(original, scheduler, batch, begin)
        self.selection_skipped = False
        batch = self._recover(batch)
        if [req for req in batch.reqs if req.finished_reason is not None]:
            batch.filter_batch()
            batch.batch_is_full = False
        if not batch.reqs:
            self._leave(self.rows.clear())
            self._split = None
            return original(scheduler, batch)
        now = self._clock.now()
        start = self._start(scheduler, now)
        left = self.rows.sync(batch.reqs, batch.seq_lens_cpu.numpy(), now)
        if left is not None:
            # Others than those who were taken apart before.
            self._split = None
            self._leave(left)
            if self._held is not None:
                self._held.joined(self.rows.rows, batch.reqs, now)
        step_s = self._select(start, changed=left is not None)
        rows = self.rows.rows
        if not _all(rows["runs"]):
            step_s = self._spare(batch, start, step_s)
        if self._held is not None and self._held.count:
            released = self._held.release(rows, batch.reqs, start, start + step_s, now)
            self._stream(scheduler, released)
        runs = rows["runs"]
        together = _all(runs)
        rows["last_token_s"][slice(None) if together else runs] = start + step_s
        self._in_flight_s = step_s
        self._counts["steps"] += 1
        self._rank_for_retraction(batch, start)
        self._decide_s.append(time.perf_counter() - begin)
        if together:
            self._split = None
            holds = self._held is not None and self._held.count
            if not holds and self.policy.all_run_for(rows, start, SELECTION_SKIPPED_STEPS):
                self.selection_skipped = True
                self._unselected = SELECTION_SKIPPED_STEPS
            return self._counted(original, scheduler, batch)
        return self._part(original, scheduler, batch)

    def settle(self, scheduler: Any) -> None:
        """In each pass: forget requests that left without a step, as a pause makes them."""
        if self.rows.reqs and not scheduler.running_batch.reqs:
            self._leave(self.rows.clear())
            self._split = None

    def launched(self, scheduler: Any, batch: Any) -> None:
        """After `Scheduler.run_batch`: the running batch holds everybody again."""
        split_batch = self._split
        if split_batch is None or split_batch.whole is not None or batch is not split_batch.ran:
            return
        begin = time.perf_counter()
        whole = merged(batch, split_batch.skipped)
        if len(whole.reqs) == len(self.rows.reqs):
            self.rows.reqs = whole.reqs  # in the order that `_part` gave the rows
        split_batch.whole = scheduler.running_batch = whole
        self._merge_s.append(time.perf_counter() - begin)

    def snapshot(self) -> dict[str, Any]:
        """Counters for /server_info."""
        counts = self._counts
        return {
            "skipping": "on" if self._refusal is None else f"off: {self._refusal}",
            "steps": counts["steps"],
            "steps_selection_skipped": counts["steps_selection_skipped"],
            "steps_with_skips": counts["steps_with_skips"],
            "skipped": len(self._split.skipped.reqs) if self._split else 0,
            "skips": counts["skips"],
            "starvation_grants": counts["starvation_grants"],
            "retractions": counts["retractions"],
            "steps_skipping_was_off": dict(self._obstacles),
            "period": self._period(),
            "max_batch": self.policy.max_batch,
            "split_us": _spread(self._split_s),
            "merge_us": _spread(self._merge_s),
            "decide_us": _spread(self._decide_s),
        }

    def _start(self, scheduler: Any, now: float) -> float:
        """When the step begins that is prepared at `now`."""
        # Under the overlap schedule the step before this one is still to run.
        return now + (self._in_flight_s if self._overlap and scheduler.last_batch else 0.0)

    def _as_before(self, original: Original, scheduler: Any, batch: Any, begin: float) -> Any:
        """Upstream's path: all of the batch run, as `SlackPolicy.all_run_for` has found before."""
        self._unselected -= 1
        self._since_selection += 1
        self._counts["steps"] += 1
        self._counts["steps_selection_skipped"] += 1
        start = self._start(scheduler, self._clock.now())
        self._rank_for_retraction(batch, start)
        self._decide_s.append(time.perf_counter() - begin)
        updated = self._counted(original, scheduler, batch)
        if updated is not None and updated.reqs is self.rows.reqs:
            self.rows.step_of_all(start + self._in_flight_s)
        return updated

    def _recover(self, batch: Any) -> Any:
        """A step that was taken apart and never launched: go on with everybody."""
        split_batch = self._split
        if split_batch is None or split_batch.whole is not None:
            return batch
        self._split = None
        return self._everybody(split_batch)

    @staticmethod
    def _everybody(split_batch: SplitBatch) -> Any:
        ran, skipped = split_batch.ran, split_batch.skipped
        return merged(ran, skipped) if ran.reqs else skipped

    def _select(self, start: float, changed: bool) -> float:
        """Fill `runs`; returns the predicted seconds of the step."""
        rows = self.rows.rows
        table, factor = self._steps.current()
        self.policy.table, self.policy.calibration.factor = table, factor
        self._since_selection += 1
        if not changed and self._since_selection < self._period():
            return self.policy.running_step_s(rows)
        self._since_selection = 0
        if self._held is not None and self._held.count:
            self._held.tick(rows, start)
        before = rows["runs"].copy()
        step_s = self.policy.select(rows, start)
        if not _all(before):
            starving = start - rows["last_token_s"] > self.policy.params.starvation_s
            self._counts["starvation_grants"] += int((starving & rows["runs"] & ~before).sum())
        return step_s

    def _spare(self, batch: Any, start: float, step_s: float) -> float:
        """Let those run that must not be parked; returns the predicted seconds of the step."""
        rows = self.rows.rows
        # An abort takes effect when the request's next result is processed.
        ending = [at for at, req in enumerate(batch.reqs) if req.to_finish is not None]
        if ending:
            self._run_first(ending, start)
            step_s = self.policy.running_step_s(rows)
        obstacle = _obstacle(batch, rows["runs"])
        if obstacle is not None:
            self._obstacles[obstacle] += 1
            rows["runs"] = True
            return self.policy.running_step_s(rows)
        return step_s

    def _run_first(self, ending: list[int], start: float) -> None:
        """Add rows to those that run. Where the step would outgrow the largest, the others make
        room, who has most time to spare first; of more rows than fit, the rest runs next."""
        runs = self.rows.rows["runs"]
        runs[ending] = True
        if np.count_nonzero(runs) <= self.policy.max_batch:
            return
        order = self.policy.retention_order(self.rows.rows, start)
        others = [at for at in order if runs[at] and at not in ending]
        runs[:] = False
        runs[[*ending, *others][: self.policy.max_batch]] = True

    def _part(self, original: Original, scheduler: Any, batch: Any) -> Any:
        """Have upstream update those that run, with the others out of its sight."""
        begin = time.perf_counter()
        runs = self.rows.rows["runs"]
        run = np.flatnonzero(runs)
        split_batch = self._split
        same = (
            split_batch is not None
            and split_batch.whole is batch
            and len(run) == len(split_batch.ran.reqs)
            and _all(runs[: len(run)])
        )
        if same and split_batch is not None:
            # Nothing but lengths has changed in the batch that ran, and in the parked one nothing.
            split_batch.whole = None
        else:
            skip = np.flatnonzero(~runs)
            self._clock.decided(*(int(n) for n in self.rows.rows["id"][skip]))
            split_batch = SplitBatch(batch, split(batch, run.tolist(), skip.tolist()))
            self.rows.reorder(np.concatenate([run, skip]))
            self._counts["skips"] += len(skip)
            self._split_s.append(time.perf_counter() - begin)
        self._split = split_batch
        updated = self._counted(original, scheduler, split_batch.ran)
        if updated is None or not updated.reqs:
            # Upstream retracted everybody that was to run.
            self._split = None
            return self._counted(original, scheduler, self._everybody(split_batch))
        split_batch.ran = updated
        self._counts["steps_with_skips"] += 1
        return updated

    def _counted(self, original: Original, scheduler: Any, batch: Any) -> Any:
        before = batch.reqs
        updated = original(scheduler, batch)
        if updated is not None and len(updated.reqs) < len(before):
            self._counts["retractions"] += sum(req.is_retracted for req in before)
        return updated

    def _rank_for_retraction(self, batch: Any, start: float) -> None:
        """When memory is about to run out: say in which order requests are to be kept."""
        allocator = batch.token_to_kv_pool_allocator
        if self._reload_s_per_token is None:
            return
        needed = len(batch.reqs) * allocator.page_size
        free = allocator.available_size()
        if free >= needed or free + batch.tree_cache.evictable_size() >= needed:
            return
        order = self.policy.retention_order(self.rows.rows, start, self._reload_s_per_token)
        for rank, at in enumerate(order):
            batch.reqs[at].kairos.retraction_rank = rank

    def begun(self, scheduler: Any) -> None:
        """The step before the selected one is done, and its tokens are streamed."""
        if self._held is not None:
            self._stream(scheduler, self._held.begun())

    @staticmethod
    def _stream(scheduler: Any, released: list[Any]) -> None:
        if released:
            logprob = any(req.return_logprob for req in released)
            scheduler.output_streamer.stream_output(released, logprob)

    def _leave(self, left: list[Any]) -> None:
        """Learn from requests that ended by themselves."""
        for req in left:
            reason = req.finished_reason
            if reason is not None and reason.to_json()["type"] != "abort":
                # The first token came with the KV: lengths count those made here.
                self.policy.completed(self.rows.group(req), max(len(req.output_ids) - 1, 0))

    def _period(self) -> int:
        """Steps between two selections, so that changing the batch costs little of them."""
        period: int = self._clock.learned("decode_period", 1)
        if len(self._split_s) >= 32 and self._counts["steps"] % 64 == 0 and self._in_flight_s > 0.0:
            cost = float(np.median(self._split_s))
            wanted = math.ceil(cost / (CHANGE_SHARE * self._in_flight_s))
            self._clock.learn("decode_period", min(max(wanted, 1), LONGEST_PERIOD))
        return period


def skipping_refusal(scheduler: Any) -> str | None:
    """Why requests of this upstream `Scheduler` cannot be parked; None if they can."""
    for reason, present in (
        ("not a decode server", scheduler.disaggregation_mode.value != "decode"),
        ("speculative decoding", not scheduler.spec_algorithm.is_none()),
        ("data-parallel attention", scheduler.require_mlp_sync),
        ("hybrid sliding-window attention", scheduler.is_hybrid_swa),
        ("a state-space model", hasattr(scheduler.req_to_token_pool, "mamba_allocator")),
        ("HiSparse", scheduler.enable_hisparse),
        ("diffusion model", scheduler.dllm_config is not None),
        ("an encoder-decoder model", scheduler.model_config.is_encoder_decoder),
        ("multiplexed prefill and decode", scheduler.enable_pdmux),
    ):
        if present:
            return reason
    return None


def _obstacle(batch: Any, runs: Any) -> str | None:
    """Why nobody may be parked in this step, of which those that `runs` marks were selected."""
    if batch.sampling_info.penalizer_orchestrator.is_required:
        # Penalties count tokens by position in the batch, a step behind under overlap.
        return "penalties"
    if any(req.beam_group is not None for req in batch.reqs):
        return "beam search"
    if not batch.check_decode_mem(np.flatnonzero(runs).tolist()):
        return "memory is short"  # everybody must be there to be retracted
    return None


def _all(flags: Any) -> bool:
    # A third of what `flags.all()` takes; this runs several times a step.
    return bool(np.count_nonzero(flags) == len(flags))


def _spread(seconds: deque[float]) -> dict[str, float]:
    if not seconds:
        return {"mean": 0.0, "p99": 0.0}
    taken = 1e6 * np.array(seconds)
    return {
        "mean": round(float(taken.mean()), 1),
        "p99": round(float(np.quantile(taken, 0.99)), 1),
    }
