"""Confidence intervals of means over the requests of a replay.

Requests that arrive together wait in the same queue, so their outcomes are correlated. Resampling
single requests would claim more certainty than there is. Therefore whole blocks of neighbours are
resampled, in the circular block bootstrap (Politis and Romano, 1992).
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRAWS = 2000
LEVEL_PERCENT = 95.0


def block_means(values: Floats, seed: int = 0, draws: int = DRAWS) -> Floats:
    """Return the means of resamples, shape [draws, columns].

    Arrays with the same number of rows get the same blocks, so the differences of two results are
    those of paired resamples.

    Args:
        values: shape [requests in order of arrival, columns].
        seed: seed of the blocks.
        draws: number of resamples.
    """
    n = len(values)
    length = block_length(n)
    blocks = -(-n // length)
    starts = np.random.default_rng(seed).integers(0, n, (draws, blocks))
    around = np.concatenate((values, values[:length]))
    sums = np.concatenate((np.zeros((1, values.shape[1])), np.cumsum(around, axis=0)))
    in_block = sums[starts + length] - sums[starts]
    return np.asarray(in_block.sum(axis=1) / (blocks * length))


def block_length(n: int) -> int:
    """Return the number of neighbours in a block: the square root of the number of requests."""
    return max(1, round(math.sqrt(n)))


def percent_interval(values: Floats, lowest: float = 0.0) -> tuple[float, float]:
    """Return the interval of a mean of percents, or of their differences.

    Resamples of equal values have no width, although doubt is left. For them the interval is
    Clopper and Pearson's bound of an event that never happened, with as many trials as there are
    independent blocks.

    Args:
        values: per request in order of arrival.
        lowest: least possible value: 0, or -100 for differences.
    """
    if np.any(values != values[0]):
        return interval(block_means(values[:, None])[:, 0])
    trials = len(values) / block_length(len(values))
    unseen = 100.0 * (1.0 - (0.5 - LEVEL_PERCENT / 200.0) ** (1.0 / trials))
    same = float(values[0])
    return max(lowest, same - unseen), min(100.0, same + unseen)


def interval(samples: Floats) -> tuple[float, float]:
    """Return the middle LEVEL_PERCENT of resampled means."""
    tail = (100.0 - LEVEL_PERCENT) / 2
    low, high = np.percentile(samples, [tail, 100.0 - tail])
    return float(low), float(high)
