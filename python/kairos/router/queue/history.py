"""Forecasts from past requests: arrivals of impatient requests, and lengths of outputs."""

import numpy as np

from kairos.policy.length import LengthEstimator, group_of
from kairos.router.queue.request import RequestDemand

_RECENT = 128
_MIN_ARRIVALS = 8
_HORIZON_S = 60.0

_UNKNOWN_OUTPUT = 1024  # tokens of KV reserved for a sequence's output while no lengths are known
_REFRESH = 25  # expected lengths are computed anew after this many completions
_MAX_EXPECTED = 4096
_CLASSES = 16


class Arrivals:
    """The latest requests that were feasible when they came, and how long each could wait."""

    def __init__(self) -> None:
        self._times = np.full(_RECENT, -np.inf)
        self._patience = np.full(_RECENT, np.inf)
        self._least_s = np.inf  # the shortest patience
        self._count = 0

    def add(self, patience_s: float, now_s: float) -> None:
        """Note a request that is feasible if its prefill begins within `patience_s`."""
        at = self._count % _RECENT
        replaced_s = self._patience[at]
        self._times[at], self._patience[at] = now_s, patience_s
        if patience_s < self._least_s:
            self._least_s = patience_s
        elif replaced_s == self._least_s:
            self._least_s = float(self._patience.min())
        self._count += 1

    def expected_misses(self, busy_s: float, now_s: float) -> float:
        """Return how many requests are expected to miss their deadlines behind a busy worker.

        It takes no other prompt for `busy_s`.
        """
        if busy_s <= self._least_s:
            return 0.0
        ages = now_s - self._times
        recent = ages <= _HORIZON_S
        if np.count_nonzero(recent) < _MIN_ARRIVALS:
            return 0.0
        # Of requests with patience p, those of the first `busy_s` - p seconds miss.
        late_s = np.maximum(busy_s - self._patience, 0.0)[recent].sum()
        return float(late_s / max(ages[recent].max(), 1e-3))


class OutputLengths:
    """Mean output lengths by SLO class and prompt length, learned from completed requests.

    The first 16 classes have means of their own; see `LengthEstimator`.
    """

    def __init__(self) -> None:
        self._lengths = LengthEstimator(classes=_CLASSES)
        self._seen = 0
        self._expected: dict[tuple[int, int], float] = {}  # (group, most tokens) -> tokens
        self._classes: dict[str, int] = {}

    def observe(self, work: RequestDemand, tokens: int) -> None:
        """Note a completed request and the tokens of all its sequences."""
        self._lengths.observe(self._group(work), max(1, tokens // work.sequences))
        if self._seen % _REFRESH == 0:
            self._expected.clear()
        self._seen += 1

    def expected(self, work: RequestDemand) -> float:
        """Return the tokens that all sequences of a request are expected to make."""
        key = self._group(work), work.max_output_tokens // work.sequences
        expected = self._expected.get(key)
        if expected is None:
            expected = self._lengths.expected_remaining(key[0], 0, key[1])
            if expected is None:
                expected = float(min(key[1], _UNKNOWN_OUTPUT))
            if len(self._expected) >= _MAX_EXPECTED:
                self._expected.clear()
            self._expected[key] = expected
        return expected * work.sequences

    def _group(self, work: RequestDemand) -> int:
        name = work.slo.slo_class
        known = self._classes
        index = known.setdefault(name, len(known)) if len(known) < _CLASSES else known.get(name, 0)
        return group_of(index, work.input_tokens)
