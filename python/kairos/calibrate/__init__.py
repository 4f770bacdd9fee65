"""Calibration: measures running servers and writes their latency profile."""
