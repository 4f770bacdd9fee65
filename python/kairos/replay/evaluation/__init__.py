"""The published evaluation: records of simulations and replays, and the pages made from them.

A record is a JSON file in docs/records. Tables and plots in docs/evaluation are functions of the
records alone, so that `scripts/evaluate.py render` gives the same bytes wherever it runs.
"""
