"""Durations of decode steps, measured where upstream processes their results."""

import logging
from collections import deque

import numpy as np
from sglang.srt.kairos.decode.device_times import DeviceStepTimes, StepLoad
from sglang.srt.kairos.decode.ranks import DecodeRanks
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import ScheduleBatch

from kairos.latency.steps import LearnedSteps, StepLearner, StepTables
from kairos.latency.table import StepTable

_log = logging.getLogger(__name__)

# Longer gaps are pauses, not steps. Upstream's own counters use the same limit, seconds.
MAX_STEP_S = 2.0

# While selection is skipped, one step in this many is learned from: it decides nothing then.
SAMPLE_EVERY = 16


class DecodeSteps:
    """Measures decode steps, learns from them, and predicts the duration of the next one.

    Args:
        prior: step times of the profile.
        overlap: the overlap schedule is on, under which a step's launch tells nothing of its end.
        device: durations on the device. Where they are known, the table is learned from them, and
            only the calibration from the pace of the results. None: both from the pace.
        ranks: the data-parallel attention ranks of the server; None: there is one.
    """

    def __init__(
        self,
        prior: StepTable,
        clock: SharedClock,
        overlap: bool,
        device: DeviceStepTimes | None = None,
        ranks: DecodeRanks | None = None,
    ) -> None:
        self.ranks = ranks
        self.learner = StepLearner(prior)
        self._tables = StepTables(prior)
        self._unlearned = self.learner.learned
        self._clock = clock
        self._overlap = overlap
        self._device = device
        self._last: tuple[int, float] | None = None
        self._ratios: deque[float] = deque(maxlen=1024)

    def restore(self, state: dict[str, object]) -> None:
        """Go on from the learner's `state` of an earlier run.

        Raises:
            InputError: the state is of another engine, or no state.
        """
        self.learner.restore(state)
        self._clock.learn("decode_steps", self.learner.learned)

    def current(self) -> tuple[StepTable, float]:
        """Return the table and its calibration factor.

        They are the same on every tensor-parallel rank. Other data-parallel ranks are idle.
        """
        if not self._clock.shared:
            return self.learner.table, self.learner.calibration.factor
        learned: LearnedSteps = self._clock.learned("decode_steps", self._unlearned)
        return self._tables.of(learned), learned.factor

    def of_next_step(self) -> tuple[StepTable, float]:
        """Return the table of the next step, beside the other ranks, and its calibration factor."""
        table, factor = self.current()
        return (table if self.ranks is None else self.ranks.beside(table)), factor

    def observe(self, batch: ScheduleBatch, done_s: float, selection_skipped: bool = False) -> None:
        """Learn from a batch whose result has just been processed.

        Results arrive at the pace of the steps, whether the next step runs already (overlap) or
        not. After a gap, the begin of a step is known only without the overlap schedule.

        Args:
            batch: the launched batch.
            done_s: when its result was processed, local monotonic seconds.
            selection_skipped: all requests run and have time to spare.
        """
        seconds = self._seconds(batch, done_s)
        wanted = not (selection_skipped and batch.forward_iter % SAMPLE_EVERY)
        load = _load(batch) if wanted and seconds is not None else None
        if self.ranks is not None and load is not None and seconds is not None:
            found = self.ranks.slowest(batch.forward_iter, self.current()[0], seconds)
            load, seconds = (None, None) if found is None else found
        if self._device is not None:
            for known, device_s in self._device.processed(load, batch.after_idle_gap):
                self.learner.observe_shape(*known, device_s)
        if load is None or seconds is None:
            return
        was_warm = self.learner.is_warm
        table, factor = self.current()
        if 1 <= load.batch < len(table.seconds):
            self._ratios.append(seconds / (factor * table.step_s(*load)))
        if self._device is None:
            self.learner.observe(*load, seconds)
        else:
            self.learner.observe_pace(*load, seconds)
        if was_warm and not self.learner.is_warm:
            _log.warning(
                "Kairos drops the step times learned before: steps take another multiple of its "
                "predictions than on the engine where they were learned"
            )
        self._clock.learn("decode_steps", self.learner.learned)

    def _seconds(self, batch: ScheduleBatch, done_s: float) -> float | None:
        """Duration of the step by this process's clock; None where it is not known."""
        last, self._last = self._last, (batch.forward_iter, done_s)
        if last is not None and not batch.after_idle_gap and last[0] + 1 == batch.forward_iter:
            seconds = done_s - last[1]
        elif not self._overlap:
            seconds = done_s - batch.launch_ts
        else:
            return None
        return seconds if 0.0 < seconds < MAX_STEP_S else None

    def snapshot(self) -> dict[str, object]:
        """Return counters for /server_info.

        `measured_over_predicted` compares each step with the prediction just before it.
        """
        ratios = np.array(self._ratios) if self._ratios else np.ones(1)
        return {
            "device_timer": self._device is not None,
            "steps_measured": self.learner.samples,
            "measured_over_predicted": {
                "p10": round(float(np.quantile(ratios, 0.1)), 4),
                "p50": round(float(np.quantile(ratios, 0.5)), 4),
                "p90": round(float(np.quantile(ratios, 0.9)), 4),
            },
            "calibration": round(self.learner.calibration.factor, 4),
            "straggler": round(self.learner.learned.straggler, 4),
        }


def _load(batch: ScheduleBatch) -> StepLoad | None:
    """Load of a batch; None where upstream keeps the lengths on the device."""
    if batch.seq_lens_cpu is None:
        return None
    lengths = batch.seq_lens_cpu.numpy()
    return StepLoad(len(lengths), float(lengths.sum()), float(lengths.max()))
