"""How often requests come, and how long they could wait."""

import numpy as np

_RECENT = 128
_FEW = 8
"""Arrivals below which nothing is known."""
_HORIZON_S = 60.0


class Arrivals:
    """The latest requests that could be on time when they came."""

    def __init__(self) -> None:
        self._times = np.full(_RECENT, -np.inf)
        self._patience = np.full(_RECENT, np.inf)
        self._count = 0

    def add(self, patience_s: float, now_s: float) -> None:
        """A request that can be on time if its prefill begins within `patience_s`."""
        at = self._count % _RECENT
        self._times[at], self._patience[at] = now_s, patience_s
        self._count += 1

    def missed(self, busy_s: float, now_s: float) -> float:
        """Requests expected to come while an instance is busy for `busy_s` that could not wait for
        its end."""
        ages = now_s - self._times
        recent = ages <= _HORIZON_S
        if np.count_nonzero(recent) < _FEW:
            return 0.0
        # Each comes at a time of its own: of those with patience p, the first busy - p seconds'.
        late_s = np.maximum(busy_s - self._patience, 0.0)[recent].sum()
        return float(late_s / max(ages[recent].max(), 1e-3))
