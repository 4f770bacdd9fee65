"""How much memory residents will need at their peak."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def peak_tokens(contexts: Floats, remaining: Floats) -> float:
    """Largest number of tokens that residents will hold together, if each grows by one token a step
    and gives its memory back after `remaining` steps. Nobody joins.

    Args:
        contexts, remaining: one entry per resident, tokens.
    """
    if not len(contexts):
        return 0.0
    # Just before a resident ends, those that end later have grown by as much as it has.
    order = np.argsort(-remaining, kind="stable")
    held = np.cumsum(contexts[order]) + np.arange(1, len(order) + 1) * remaining[order]
    return float(held.max())
