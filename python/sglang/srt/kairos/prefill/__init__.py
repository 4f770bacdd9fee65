"""Prefill servers: batches planned by urgency."""
