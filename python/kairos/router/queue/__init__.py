"""The urgency queue: admission, order, shares, dispatch."""
