"""What decode steps take, seen from where upstream processes their results."""

from collections import deque
from typing import Any

import numpy as np
from sglang.srt.kairos.device_times import DeviceTimes, Load
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency.steps import LearnedSteps, StepLearner, StepTables
from kairos.latency.table import StepTable

# Longer gaps are pauses, not steps. Upstream's own counters draw the same line.
LONGEST_STEP_S = 2.0

# While everybody has time to spare, one step of so many is learned from: it decides nothing then.
SAMPLE_EVERY = 16


class DecodeSteps:
    """Measures decode steps, learns from them, and says what a step will take.

    Args:
        prior: step times of the profile.
        overlap: the overlap schedule is on: a step's launch says nothing about its end.
        device: what steps take on the device. The table is learned from that then, and from the
            pace of the results only how much longer everything takes. None: both from the pace.
    """

    def __init__(
        self,
        prior: StepTable,
        clock: SharedClock,
        overlap: bool,
        device: DeviceTimes | None = None,
    ) -> None:
        self.learner = StepLearner(prior)
        self._tables = StepTables(prior)
        self._unlearned = self.learner.learned
        self._clock = clock
        self._overlap = overlap
        self._device = device
        self._last: tuple[int, float] | None = None
        self._ratios: deque[float] = deque(maxlen=1024)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what the learner's `state` returned in an earlier run.

        Raises:
            InputError: of another engine, or not a state.
        """
        self.learner.restore(state)
        self._clock.learn("decode_steps", self.learner.learned)

    def current(self) -> tuple[StepTable, float]:
        """The table and its calibration factor, the same on every rank."""
        if not self._clock.shared:
            return self.learner.table, self.learner.calibration.factor
        learned: LearnedSteps = self._clock.learned("decode_steps", self._unlearned)
        return self._tables.of(learned), learned.factor

    def observe(self, batch: Any, done_s: float, selection_skipped: bool = False) -> None:
        """Take in an upstream batch whose result has just been processed.

        Results come one after the other at the pace of the steps, whether the next one runs
        already (overlap) or not. Behind a gap only the schedule without overlap has a beginning.

        Args:
            done_s: local monotonic seconds.
            selection_skipped: everybody runs and has time to spare.
        """
        seconds = self._seconds(batch, done_s)
        wanted = not (selection_skipped and batch.forward_iter % SAMPLE_EVERY)
        load = _load(batch) if wanted and seconds is not None else None
        if self._device is not None:
            for known, device_s in self._device.processed(load, batch.after_idle_gap):
                self.learner.observe_shape(*known, device_s)
        if load is None or seconds is None:
            return
        table, factor = self.current()
        if 1 <= load.batch < len(table.seconds):
            self._ratios.append(seconds / (factor * table.step_s(*load)))
        if self._device is None:
            self.learner.observe(*load, seconds)
        else:
            self.learner.observe_pace(*load, seconds)
        self._clock.learn("decode_steps", self.learner.learned)

    def _seconds(self, batch: Any, done_s: float) -> float | None:
        """How long the step took by the clock of this process; None where that is not known."""
        last, self._last = self._last, (batch.forward_iter, done_s)
        if last is not None and not batch.after_idle_gap and last[0] + 1 == batch.forward_iter:
            seconds = done_s - last[1]
        elif not self._overlap:
            seconds = done_s - batch.launch_ts
        else:
            return None
        return seconds if 0.0 < seconds < LONGEST_STEP_S else None

    def snapshot(self) -> dict[str, Any]:
        """Counters for /server_info: how steps compare with what was predicted just before."""
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


def _load(batch: Any) -> Load | None:
    """Of an upstream batch; None where upstream keeps its lengths on the device."""
    if batch.seq_lens_cpu is None:
        return None
    lengths = batch.seq_lens_cpu.numpy()
    return Load(len(lengths), float(lengths.sum()), float(lengths.max()))
