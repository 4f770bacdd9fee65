"""Measure a running pair of servers and write what was found as a latency profile."""
