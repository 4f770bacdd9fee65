"""What a simulation runs."""

from dataclasses import dataclass, field

from kairos.errors import InputError
from kairos.instances import parse_instances
from kairos.policy.slack import SlackParams
from kairos.policy.urgency import UrgencyParams
from kairos.sim.baselines.prefill import BASELINES

DECODE_POLICIES = ("continuous", "greedy", "slack")
ROUTINGS = ("late", "least-loaded", "round-robin")


@dataclass(frozen=True, slots=True)
class SimConfig:
    """Attributes:
    prefill_policy: "urgency" or a key of `BASELINES`.
    decode_policy: one of DECODE_POLICIES.
    instances: "1P1D": prefill and decode instances.
    lookahead: a batch or step is composed when the one before it starts, as the overlap schedule
        does.
    decode_lookahead: on decode instances too, where `lookahead` is on.
    hold: the first token is held back until its decode slot is ready, the deadline at most.
    routing: how arrivals are bound to prefill instances.
    decode_cap: static cap on the decode batch; 0: the profile's limit.
    stages: "both", "prefill" (nothing is decoded) or "decode" (prompts are prefilled at once).
    lengths: the slack policy learns output lengths.
    prefill_bias: predicted / true batch time.
    decode_bias: predicted / true step time.
    noise: relative standard deviation of true batch and step times.
    change_cost_s: added to a step in which a resident is parked or resumed.
    contention: transfers of one prefill instance share its link, one after the other.
    preallocate: a prompt is prefilled only once a decode instance has room for it.
    grants: who gets that room first: "arrival" is upstream's order; "deadline" prefers those that
        can be on time (`policy/preallocation.py`); "": the second one with urgency.
    handshake_s: from the grant of that room until a prefill server may begin.
    first_token: who sends it: "prefill" at the end of its batch, or "decode" when it takes the
        request in, as SGLang's disaggregation does.
    admission: arrivals are admitted, degraded or turned away by their outlook.
    seed: of the noise.
    """

    prefill_policy: str = "urgency"
    decode_policy: str = "slack"
    instances: str = "1P1D"
    lookahead: bool = True
    decode_lookahead: bool = True
    hold: bool = False
    routing: str = "late"
    decode_cap: int = 0
    stages: str = "both"
    lengths: bool = True
    prefill_bias: float = 1.0
    decode_bias: float = 1.0
    noise: float = 0.0
    change_cost_s: float = 0.0
    contention: bool = False
    preallocate: bool = False
    grants: str = ""
    handshake_s: float = 0.0
    first_token: str = "prefill"
    admission: bool = False
    seed: int = 0
    urgency: UrgencyParams = field(default_factory=UrgencyParams)
    slack: SlackParams = field(default_factory=SlackParams)

    def __post_init__(self) -> None:
        choices = {
            "prefill policy": (self.prefill_policy, ("urgency", *BASELINES)),
            "decode policy": (self.decode_policy, DECODE_POLICIES),
            "routing": (self.routing, ROUTINGS),
            "grants": (self.grants, ("", "arrival", "deadline")),
            "first token": (self.first_token, ("prefill", "decode")),
            "stages": (self.stages, ("both", "prefill", "decode")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise InputError(f"{name} {value!r}: allowed are {', '.join(allowed)}")
        bounds = {
            "decode cap": (self.decode_cap, 0, 1e6),
            "prefill bias": (self.prefill_bias, 0.1, 10.0),
            "decode bias": (self.decode_bias, 0.1, 10.0),
            "noise": (self.noise, 0.0, 1.0),
            "change cost": (self.change_cost_s, 0.0, 1.0),
            "handshake": (self.handshake_s, 0.0, 1.0),
        }
        for name, (number, low, high) in bounds.items():
            if not low <= number <= high:
                raise InputError(f"{name} {number!r}: allowed are {low:g} to {high:g}")
        prefill_instances, _ = self.shape
        if self.admission and (prefill_instances > 1 or self.stages == "decode"):
            raise InputError("admission: allowed is one prefill instance, not stages 'decode'")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of prefill and decode instances."""
        return parse_instances(self.instances, "instances")
