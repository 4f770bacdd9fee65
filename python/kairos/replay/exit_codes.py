"""Exit codes of `kairos replay`; 0 means that all runs are valid."""

SERVERS_FAILED = 1
BAD_INPUT = 2
DISTURBED = 3
"""A run was disturbed; its report is written and says how."""
INTERRUPTED = 130
