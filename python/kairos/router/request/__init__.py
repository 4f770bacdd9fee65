"""One request from its receipt to its outcome."""
