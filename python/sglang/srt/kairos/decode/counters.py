"""Counters of the decode steps of one server, for /server_info."""

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

# Durations are kept of this many newest calls.
KEPT = 1024


def _durations() -> deque[float]:
    return deque(maxlen=KEPT)


@dataclass(slots=True)
class DecodeCounters:
    """Counts of one decode server, and CPU times of the newest steps.

    Attributes:
        steps: decode steps prepared.
        steps_selection_skipped: steps in which selection was skipped.
        steps_with_skips: steps that skipped a request.
        skips: requests that a changed selection skipped.
        starvation_grants: requests that run again because they starved.
        retractions: requests that upstream retracted.
        obstacles: steps in which no request could be skipped, by reason.
        split_s: durations of splitting a batch, seconds.
        merge_s: durations of merging it again, seconds.
        decide_s: durations of deciding on a step, seconds.
    """

    steps: int = 0
    steps_selection_skipped: int = 0
    steps_with_skips: int = 0
    skips: int = 0
    starvation_grants: int = 0
    retractions: int = 0
    obstacles: Counter[str] = field(default_factory=Counter)
    split_s: deque[float] = field(default_factory=_durations)
    merge_s: deque[float] = field(default_factory=_durations)
    decide_s: deque[float] = field(default_factory=_durations)

    def snapshot(self) -> dict[str, object]:
        """Return the counters as plain values."""
        return {
            "steps": self.steps,
            "steps_selection_skipped": self.steps_selection_skipped,
            "steps_with_skips": self.steps_with_skips,
            "skips": self.skips,
            "starvation_grants": self.starvation_grants,
            "retractions": self.retractions,
            "steps_skipping_was_off": dict(self.obstacles),
            "split_us": _spread_us(self.split_s),
            "merge_us": _spread_us(self.merge_s),
            "decide_us": _spread_us(self.decide_s),
        }


def _spread_us(seconds: deque[float]) -> dict[str, float]:
    """Mean and 99th percentile, microseconds."""
    if not seconds:
        return {"mean": 0.0, "p99": 0.0}
    taken = 1e6 * np.array(seconds)
    return {
        "mean": round(float(taken.mean()), 1),
        "p99": round(float(np.quantile(taken, 0.99)), 1),
    }
