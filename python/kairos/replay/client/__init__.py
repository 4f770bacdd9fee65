"""The open-loop client: it sends planned requests when they are due and records the responses."""
