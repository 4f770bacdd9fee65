"""Exit codes of `kairos replay` beside 0."""

SERVERS_FAILED = 1
BAD_INPUT = 2
DISTURBED = 3
"""A run was disturbed: its report is written, and says so."""
INTERRUPTED = 130
