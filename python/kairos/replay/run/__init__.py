"""Runs of a plan against servers: start, warm-up, interference checks and record files."""
