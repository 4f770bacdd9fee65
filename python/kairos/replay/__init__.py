"""Replay of a trace against running servers, with an account of its SLOs."""
