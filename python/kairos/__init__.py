"""Kairos: SLO-aware scheduling for prefill/decode-disaggregated LLM serving.

This package decides and measures. It imports neither sglang nor torch, so a router, a
simulator or a unit test pays milliseconds for it, not the seconds of an engine import.
"""

__version__ = "0.1.0"
