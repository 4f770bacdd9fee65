"""Online correction of a latency model by measurements."""

import math


class Calibration:
    """Exponentially weighted mean and spread of measured / predicted.

    A sample beyond four spreads counts as one at four spreads: a garbage collection or a page
    fault must not stretch the predictions of the next hundred steps.

    Args:
        alpha: weight of one sample; 0.05 follows a drift within some 60 samples.

    Attributes:
        factor: mean of measured / predicted.
        spread: estimate of its standard deviation.
        samples: that were taken in.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        self.factor = 1.0
        self.spread = 0.1
        self.samples = 0
        self._alpha = alpha

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Take in one sample; values that are not positive and finite are ignored.

        Args:
            predicted_s: prediction of the model without this factor, seconds.
            measured_s: duration, seconds.
        """
        if not (0.0 < predicted_s < math.inf and 0.0 < measured_s < math.inf):
            return
        error = measured_s / predicted_s - self.factor
        limit = 4.0 * self.spread + 0.01 * self.factor
        error = min(max(error, -limit), limit)
        self.samples += 1
        self.factor += self._alpha * error
        self.spread += self._alpha * (1.25 * abs(error) - self.spread)

    @property
    def bias(self) -> float:
        """Relative error of the model: 0.1 if durations are 10 % longer than predicted."""
        return self.factor - 1.0

    def quantile(self, sigmas: float) -> float:
        """Return the value of measured / predicted that is `sigmas` deviations above its mean."""
        return self.factor + sigmas * self.spread
