"""The speed of a prefill worker, learned from its busy periods."""

import math

HANDOVER_S = 0.05
"""Assumed time from sending a request until its prefill starts: preallocation, bootstrap."""
MIN_PERIODS = 8
_MEMORY_S = 60.0
"""After this many more busy seconds, a busy second counts 1/e."""
_PRIOR_S = 5.0
"""A profile counts as much as this many observed seconds."""
_LONGEST_S = 86_400.0
"""Longer periods are not believed; sums of them need not be finite."""
_SHORT_S = 0.5
"""Periods with less work than this tell the hand-over, which longer ones hide."""


class Speed:
    """A ratio of sums: busy time over predicted work, both forgotten at one pace.

    A sample is a busy period: from the first request sent to an idle worker until it is idle
    again, or a part of a long one. Ratios of sums forgive that a part's work was done in another
    part, which least squares does not. The handover, once per start, is learned from short periods.

    Args:
        trusted: predictions come from a profile of this engine. Otherwise they are a mere unit
            of work, and nothing is known before `MIN_PERIODS` samples.

    Attributes:
        factor: measured / predicted time.
        handover_s: from sending a request until its prefill starts, seconds.
        periods: samples.
    """

    def __init__(self, trusted: bool) -> None:
        self.factor = 1.0
        self.handover_s = HANDOVER_S
        self.periods = 0
        self._trusted = trusted
        self._busy_s = self._work_s = _PRIOR_S if trusted else 0.0

    @property
    def known(self) -> bool:
        return self._trusted or self.periods >= MIN_PERIODS

    def observe(self, started: bool, predicted_s: float, measured_s: float) -> None:
        """Learn from a busy period. One that is not positive, or longer than a day, is ignored.

        Args:
            started: whether the worker was idle at its begin; otherwise it is a later part.
            predicted_s: its work, uncalibrated.
            measured_s: its duration.
        """
        if not (0.0 < predicted_s < _LONGEST_S and 0.0 < measured_s < _LONGEST_S):
            return
        if self.known:
            # A worker that hung says nothing about its speed.
            expected = self.handover_s + self.factor * predicted_s
            measured_s = min(measured_s, 4.0 * expected)
        busy_s = measured_s
        if started:
            busy_s = max(measured_s - self.handover_s, 0.1 * measured_s)
            if self.known and self.factor * predicted_s < _SHORT_S:
                rest = min(max(measured_s - self.factor * predicted_s, 0.0), 1.0)
                self.handover_s += 0.1 * (rest - self.handover_s)
        keep = math.exp(-measured_s / _MEMORY_S)
        self._busy_s = keep * self._busy_s + busy_s
        self._work_s = keep * self._work_s + predicted_s
        self.periods += 1
        low, high = (0.1, 10.0) if self._trusted else (1e-3, 1e3)
        self.factor = min(max(self._busy_s / self._work_s, low), high)
