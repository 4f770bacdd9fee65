"""Discrete-event simulator over the same policies and latency models as the engine."""
