"""Parameters of the router's scheduling."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from kairos.policy.admission import AdmissionDecision, AdmissionParams
from kairos.validation import Range, check_range, check_ranges


class Binding(Enum):
    """The rule by which requests get to pairs.

    URGENCY: late binding, the most urgent request first, to the worker that is predicted to end it
    first. The others are for comparison and send requests at once, in order of arrival. EARLY: to
    the worker that is predicted to end it first. LEAST_LOADED: by outstanding tokens. ROUND_ROBIN:
    in turn.
    """

    URGENCY = "urgency"
    EARLY = "early"
    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"


_RANGES = {
    "max_requests": Range(1, 10_000_000),
    "max_sequences": Range(1, 100_000_000),
    "max_bytes": Range(1, 1 << 50),
    "infeasible_after": Range(1.0, 1e6),
    "tenant_room": Range(0.01, math.inf),
    "fair_slack_s": Range(0.0, 1e6),
    "starve_share": Range(0.0, 1.0),
    "starve_after": Range(1.0, 1e6),
}
_WEIGHT = Range(1e-3, 1e3)


@dataclass(frozen=True, slots=True)
class DispatchParams:
    """Bounds of the queue, shares and binding.

    Attributes:
        max_requests: requests that wait at most; so for their sequences and the bytes of bodies.
        infeasible: the decision on a request whose TTFT objective cannot be met.
        infeasible_after: an objective is infeasible when the predicted TTFT exceeds the time left
            this many times; predictions are uncertain, and a request that is not tried is certain
            to fail.
        tenant_weights: share of a tenant within its class, relative to the others; 1 where not
            named.
        tenant_room: a tenant's requests and bytes may fill at most this many times its weight times
            the free part of the queue. 4: one tenant alone gets 80 % of it, and there is always
            room for another. `inf` switches it off.
        fair_slack_s: seconds of predicted work that a tenant may be ahead of another that waits,
            before it has to let that one pass.
        starve_share: share of prefill time for starved requests; 0 disables.
        starve_after: a request that is not feasible is starved after this multiple of its TTFT
            objective.
    """

    max_requests: int = 4096
    max_sequences: int = 16_384
    max_bytes: int = 512 << 20
    infeasible: AdmissionDecision = AdmissionDecision.BEST_EFFORT
    infeasible_after: float = 1.5
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    tenant_room: float = 4.0
    fair_slack_s: float = 2.0
    starve_share: float = 0.01
    starve_after: float = 8.0
    binding: Binding = Binding.URGENCY

    def __post_init__(self) -> None:
        check_ranges("dispatch", self, _RANGES)
        for name, weight in self.tenant_weights.items():
            check_range(f"dispatch: weight of tenant {name!r}", weight, _WEIGHT)

    @property
    def admission(self) -> AdmissionParams:
        """The parameters of `kairos.policy.admission.decide`."""
        return AdmissionParams(self.infeasible_after, self.infeasible, reject_after=math.inf)
