"""What can be set of the router's scheduling."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from kairos.errors import InputError
from kairos.policy.admission import AdmissionDecision, AdmissionParams


class Infeasible(Enum):
    """What happens to a request whose TTFT objective cannot be met. BEST_EFFORT: it is served after
    all others. DEGRADE: it gets an objective that can be met. REJECT: try again later."""

    BEST_EFFORT = "best_effort"
    DEGRADE = "degrade"
    REJECT = "reject"


class Binding(Enum):
    """How requests get to pairs. URGENCY: late, the most urgent first, where it is predicted to be
    done first. The others are for comparison, first come first served and at once: EARLY to where
    it is predicted to be done first, LEAST_LOADED by outstanding tokens, ROUND_ROBIN in turn."""

    URGENCY = "urgency"
    EARLY = "early"
    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"


@dataclass(frozen=True, slots=True)
class DispatchParams:
    """Attributes:
    max_requests: requests that wait at most.
    max_sequences: their sequences together at most.
    max_bytes: their bodies together at most, bytes.
    infeasible: what happens to a request whose TTFT objective cannot be met.
    infeasible_after: it "cannot be met" when the predicted TTFT exceeds the time left this many
        times; predictions are uncertain, and not to try is certain to fail.
    tenant_weights: share of a tenant within its class, relative to the others; 1 where not named.
    tenant_room: a tenant's requests and bytes may fill at most this many times its weight times
        what is still free of the queue. 4: one tenant alone gets 80 % of it, and there is always
        room for another. `inf` switches it off.
    fair_slack_s: seconds of predicted work that a tenant may be ahead of another that waits,
        before it has to let that one pass.
    starve_share: share of prefill time for infeasible and deferred requests that wait too
        long; 0 disables.
    starve_after: "too long" is this many times the request's own TTFT objective.
    stale_s: a report older than this is not used any more.
    block_limit: prefix blocks remembered per prefill instance.
    binding: how requests get to pairs.
    """

    max_requests: int = 4096
    max_sequences: int = 16_384
    max_bytes: int = 512 << 20
    infeasible: Infeasible = Infeasible.BEST_EFFORT
    infeasible_after: float = 1.5
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    tenant_room: float = 4.0
    fair_slack_s: float = 2.0
    starve_share: float = 0.01
    starve_after: float = 8.0
    stale_s: float = 2.0
    block_limit: int = 131_072
    binding: Binding = Binding.URGENCY

    @property
    def admission(self) -> AdmissionParams:
        """The parameters of `kairos.policy.admission.decide`."""
        on_infeasible = AdmissionDecision(self.infeasible.value)
        return AdmissionParams(self.infeasible_after, on_infeasible, reject_after=math.inf)

    def __post_init__(self) -> None:
        allowed = {
            "max_requests": (self.max_requests, 1, 10_000_000),
            "max_sequences": (self.max_sequences, 1, 100_000_000),
            "max_bytes": (self.max_bytes, 1, 1 << 50),
            "infeasible_after": (self.infeasible_after, 1.0, 1e6),
            "tenant_room": (self.tenant_room, 0.01, math.inf),
            "fair_slack_s": (self.fair_slack_s, 0.0, 1e6),
            "starve_share": (self.starve_share, 0.0, 1.0),
            "starve_after": (self.starve_after, 1.0, 1e6),
            "stale_s": (self.stale_s, 0.1, 3600.0),
            "block_limit": (self.block_limit, 0, 1 << 30),
            **{
                f"weight of tenant {name!r}": (weight, 1e-3, 1e3)
                for name, weight in self.tenant_weights.items()
            },
        }
        for name, (value, low, high) in allowed.items():
            if not low <= value <= high:
                raise InputError(f"dispatch: {name} = {value!r}; allowed are {low:g} to {high:g}")
