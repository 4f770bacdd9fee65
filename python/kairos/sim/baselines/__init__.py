"""Policies to compare with, simulated only."""
