"""What decode steps took on the device, where upstream's device timer runs
(SGLANG_ENABLE_METRICS_DEVICE_TIMER, --enable-forward-pass-metrics)."""

from collections import deque
from typing import Any, NamedTuple

# Reports are some two steps late. Further apart, the two sides have lost each other.
MAX_APART = 8


class Load(NamedTuple):
    """Of one step: its requests, and sum and maximum of their contexts, tokens."""

    batch: int
    total: float
    longest: float


class DeviceTimes:
    """Pairs the reports of upstream's `DeviceTimer`, which come late and do not say of which batch,
    with the steps whose results were processed. Both are in the order of launch.

    Args:
        timer: upstream's; it keeps reporting to others, too.
    """

    def __init__(self, timer: Any) -> None:
        self._loads: deque[Load | None] = deque()
        self._seconds: deque[float] = deque()
        timer.add_reporter(self._report)

    def _report(self, t: float, category: str, **_: Any) -> None:
        if category == "decode":
            self._seconds.append(t)

    def processed(self, load: Load | None, after_idle: bool) -> list[tuple[Load, float]]:
        """The result of one more step was processed.

        Args:
            load: None: nobody wants to know of this step.
            after_idle: nothing ran before it.

        Returns:
            steps and their seconds on the device, as far as they are known by now.
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


def device_times(scheduler: Any) -> DeviceTimes | None:
    """Of an upstream `Scheduler`; None where its device timer is off."""
    timer = getattr(scheduler.metrics_reporter, "forward_pass_device_timer", None)
    return None if timer is None else DeviceTimes(timer)
