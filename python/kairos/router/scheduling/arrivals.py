"""How often requests come, and how long they could wait."""

from collections import deque

import numpy as np

_RECENT = 128
_FEW = 8
"""Arrivals below which nothing is known."""


class Arrivals:
    """The latest requests that could be on time when they came."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_RECENT)
        self._patience = np.full(_RECENT, np.inf)
        self._count = 0

    def add(self, patience_s: float, now_s: float) -> None:
        """A request that can be on time if its prefill begins within `patience_s`."""
        self._times.append(now_s)
        self._patience[self._count % _RECENT] = patience_s
        self._count += 1

    def missed(self, busy_s: float, now_s: float) -> float:
        """Requests expected to come while an instance is busy for `busy_s` that could not wait for
        its end."""
        if len(self._times) < _FEW:
            return 0.0
        short = busy_s - self._patience
        short = short[short > 0.0]
        # Each comes at a time of its own: of those with patience p, the first busy - p seconds'.
        seconds = max(now_s - self._times[0], 1e-3)
        return float(short.sum()) / seconds
