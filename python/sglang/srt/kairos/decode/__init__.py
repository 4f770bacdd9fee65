"""Decode servers: steps of selected requests, and memory by urgency."""
