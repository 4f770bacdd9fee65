"""The workers in use: discovery, health, load reports."""
