"""Runs of a plan against servers: start, warm-up, measurement, interference and record files."""
