"""Scheduling policies: pure functions of (state, now). No clock is read, nothing is shared."""
