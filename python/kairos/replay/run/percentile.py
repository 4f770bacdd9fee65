"""Percentiles by rank."""

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` % of the values do not exceed.

    Args:
        ordered: values in ascending order; may be empty.
        percent: above 0, at most 100.

    Returns:
        The value; None for no values.
    """
    if not ordered:
        return None
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
