"""Latency models of one engine: prefill batches, decode steps and KV transfer.

A `Profile` holds the three, the limits of the engine, and the origin of its numbers.
"""

from kairos.latency.calibration import Calibration
from kairos.latency.decode import DecodeModel
from kairos.latency.kv import KvLink
from kairos.latency.prefill import Chunk, PrefillModel
from kairos.latency.profile import InstanceLimits, Profile, Provenance, load_profile
from kairos.latency.store import merge_profiles, save_profile

__all__ = [
    "Calibration",
    "Chunk",
    "DecodeModel",
    "InstanceLimits",
    "KvLink",
    "PrefillModel",
    "Profile",
    "Provenance",
    "load_profile",
    "merge_profiles",
    "save_profile",
]
