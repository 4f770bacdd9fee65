"""How fast a prefill instance is, learned from what it did."""

import math

_KEEP = 0.98
"""A sample counts 1/e after 50 more."""
HANDOVER_S = 0.05
"""Assumed time from sending a request until its prefill starts: preallocation, bootstrap."""
MIN_PERIODS = 8


class Speed:
    """Least squares of `seconds = handover * starts + factor * predicted` with forgetting.

    A sample is a busy period: from the first request sent to an idle instance until it is idle
    again, or a part of a long one. Its start costs the handover once, its work takes `factor`
    times what was predicted.

    Args:
        trusted: predictions come from a profile of this engine. Otherwise they are a mere unit
            of work, and nothing is known before `MIN_PERIODS` samples.
    """

    def __init__(self, trusted: bool) -> None:
        self.factor = 1.0
        self.handover_s = HANDOVER_S
        self.periods = 0
        self._trusted = trusted
        # Normal equations, started with what is assumed: weak where there is no profile.
        weight = 4.0 if trusted else 1e-4
        self._ss, self._sw, self._ww = 4.0, 0.0, weight
        self._sy, self._wy = 4.0 * HANDOVER_S, weight

    @property
    def known(self) -> bool:
        return self._trusted or self.periods >= MIN_PERIODS

    def observe(self, started: bool, predicted_s: float, measured_s: float) -> None:
        """One busy period, or a part of it that began in its middle (`started` false). Samples that
        are not positive and finite are ignored."""
        if not (0.0 < predicted_s < math.inf and 0.0 < measured_s < math.inf):
            return
        if self.known:
            # A hang says nothing about the speed.
            expected = self.handover_s + self.factor * predicted_s
            measured_s = min(measured_s, 4.0 * expected)
        s = 1.0 if started else 0.0
        self._ss = _KEEP * self._ss + s
        self._sw = _KEEP * self._sw + s * predicted_s
        self._ww = _KEEP * self._ww + predicted_s**2
        self._sy = _KEEP * self._sy + s * measured_s
        self._wy = _KEEP * self._wy + predicted_s * measured_s
        self.periods += 1
        self._solve()

    def _solve(self) -> None:
        determinant = self._ss * self._ww - self._sw**2
        handover = HANDOVER_S
        if determinant > 1e-6 * self._ss * self._ww:
            handover = (self._sy * self._ww - self._wy * self._sw) / determinant
        self.handover_s = min(max(handover, 0.0), 1.0)
        factor = (self._wy - self.handover_s * self._sw) / self._ww
        low, high = (0.1, 10.0) if self._trusted else (1e-3, 1e3)
        self.factor = min(max(factor, low), high)
