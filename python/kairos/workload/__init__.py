"""Traces and what a replay or a simulation makes of them: prefixes, load, SLOs."""
