"""The memory that residents will need at their peak."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def peak_tokens(contexts: Floats, remaining: Floats) -> float:
    """Return the largest number of tokens that residents will hold together.

    Each grows by one token a step and frees its memory after its remaining steps. None joins.

    Args:
        contexts: tokens that each resident holds.
        remaining: tokens that each resident is still to make.
    """
    if not len(contexts):
        return 0.0
    # Just before a resident ends, all that end later have grown by as much as it has.
    order = np.argsort(-remaining, kind="stable")
    held = np.cumsum(contexts[order]) + np.arange(1, len(order) + 1) * remaining[order]
    return float(held.max())
