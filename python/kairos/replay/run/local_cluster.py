"""The servers of an arm on this machine."""

from collections.abc import Callable
from dataclasses import dataclass

from kairos.cluster import ClusterSpec, DpAttention
from kairos.replay.plan.arms import ArmSpec


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """The facts from which a caller describes the servers of an arm.

    Attributes:
        arm: server configuration.
        prefill: number of prefill servers.
        decode: number of decode servers.
        dp_attention: data-parallel attention ranks of a server of each role.
        profile: latency profile, shipped name or path; dilated if the run is.
        mini_lb: whether requests pass through upstream's router if the arm has no router.
        cache_tokens: prefix cache of a prefill server, shared by its ranks.
        kv_tokens: KV memory of an instance of the profile, or of a rank. Prompts in work get a
            share of it beside the prefix cache.
    """

    arm: ArmSpec
    prefill: int
    decode: int
    dp_attention: DpAttention
    profile: str
    mini_lb: bool
    cache_tokens: int
    kv_tokens: int


ClusterOf = Callable[[LocalCluster], ClusterSpec]
"""Describes the servers of an arm."""
