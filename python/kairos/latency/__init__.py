"""Latency models of one engine: prefill batches, decode steps and KV transfer.

`Profile` bundles the three with the engine's limits and says where the numbers come from.
"""

from kairos.latency.decode import DecodeModel
from kairos.latency.kv import KvLink
from kairos.latency.prefill import Chunk, PrefillModel
from kairos.latency.profile import Limits, Profile, Provenance, load_profile

__all__ = [
    "Chunk",
    "DecodeModel",
    "KvLink",
    "Limits",
    "PrefillModel",
    "Profile",
    "Provenance",
    "load_profile",
]
