"""Replay a trace against running servers and account for its SLOs."""
