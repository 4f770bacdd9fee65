"""The open-loop client: sends planned requests when they are due and records the answers."""
