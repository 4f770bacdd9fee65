"""The servers of an arm on this machine."""

from collections.abc import Callable
from dataclasses import dataclass

from kairos.cluster import ClusterSpec
from kairos.replay.plan.arms import ArmSpec


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """What the caller needs to describe the servers of an arm.

    Attributes:
        prefill, decode: number of servers.
        profile: latency profile, shipped name or path; dilated if the run is.
        mini_lb: whether requests go through upstream's router instead of straight to both servers.
        cache_tokens: prefix cache of a prefill server.
        kv_tokens: what else of its KV prompts in work may need.
    """

    arm: ArmSpec
    prefill: int
    decode: int
    profile: str
    mini_lb: bool
    cache_tokens: int
    kv_tokens: int


ClusterOf = Callable[[LocalCluster], ClusterSpec]
