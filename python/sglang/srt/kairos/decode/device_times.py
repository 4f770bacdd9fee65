"""Durations of decode steps on the device, measured by upstream's device timer.

The timer runs under SGLANG_ENABLE_METRICS_DEVICE_TIMER or --enable-forward-pass-metrics.
"""

from collections import deque
from typing import NamedTuple

from sglang.srt.kairos.upstream import DeviceTimer, Scheduler

# Reports arrive about two steps late. Beyond this distance, reports and steps no longer match.
MAX_APART = 8


class StepLoad(NamedTuple):
    """Load of one decode step.

    Attributes:
        batch: requests.
        total: sum of their contexts, tokens.
        longest: longest context, tokens.
    """

    batch: int
    total: float
    longest: float


class DeviceStepTimes:
    """Pairs reports of upstream's device timer with the steps whose results were processed.

    Reports come late and do not name their batch. Reports and steps are both in order of launch.

    Args:
        timer: upstream's timer; it keeps its other reporters.
    """

    def __init__(self, timer: DeviceTimer) -> None:
        self._loads: deque[StepLoad | None] = deque()
        self._seconds: deque[float] = deque()
        timer.add_reporter(self._report)

    def __len__(self) -> int:
        """Steps and reports that wait for their counterparts."""
        return len(self._loads) + len(self._seconds)

    def _report(self, t: float, category: str, **metadata: object) -> None:
        del metadata
        if category == "decode":
            self._seconds.append(t)

    def processed(self, load: StepLoad | None, after_idle: bool) -> list[tuple[StepLoad, float]]:
        """Note one more step whose result was processed.

        Args:
            load: load of the step; None for a step that is not learned from.
            after_idle: whether the device was idle before the step.

        Returns:
            Steps whose duration is known by now, with that duration in seconds.
        """
        if after_idle or max(len(self._loads), len(self._seconds)) > MAX_APART:
            self._loads.clear()
            self._seconds.clear()
        self._loads.append(load)
        found = []
        while self._loads and self._seconds:
            known, seconds = self._loads.popleft(), self._seconds.popleft()
            if known is not None:
                found.append((known, seconds))
        return found


def device_step_times(scheduler: Scheduler) -> DeviceStepTimes | None:
    """Return the device times of a scheduler; None where upstream's device timer is off."""
    timer = scheduler.metrics_reporter.forward_pass_device_timer
    return None if timer is None else DeviceStepTimes(timer)
