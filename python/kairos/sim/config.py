"""The configuration of a simulation."""

from dataclasses import dataclass, field, replace

from kairos.errors import InputError
from kairos.instances import parse_instances
from kairos.latency import Profile
from kairos.latency.profile import RANKS
from kairos.policy.engine_defaults import prefill_urgency
from kairos.policy.slack import SlackParams
from kairos.policy.urgency import UrgencyParams
from kairos.sim.baselines.prefill import BASELINES
from kairos.validation import Range, check_choice, check_range

PREFILL_POLICIES = ("urgency", *BASELINES)
DECODE_POLICIES = ("continuous", "greedy", "slack")
UPSTREAM_ORDERS = ("fcfs", "lpm", "spf", "hrrn-np")
"""SGLang's orders of prefill, among the PREFILL_POLICIES."""

ROUTINGS = ("late", "least-loaded", "round-robin")
STAGES = ("both", "prefill", "decode")
GRANT_ORDERS = ("arrival", "deadline")
PLACEMENTS = ("round-robin", "room", "requests", "tokens", "kairos")

_CHOICES = {
    "prefill_policy": PREFILL_POLICIES,
    "decode_policy": DECODE_POLICIES,
    "routing": ROUTINGS,
    "first_token": ("prefill", "decode"),
    "stages": STAGES,
    "placement": PLACEMENTS,
}
_RANGES = {
    "decode_cap": Range(0, 1e6),
    "dp_attention": Range(0, RANKS.high),
    "prefill_bias": Range(0.1, 10.0),
    "decode_bias": Range(0.1, 10.0),
    "noise": Range(0.0, 1.0),
    "change_cost_s": Range(0.0, 1.0),
    "handshake_s": Range(0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class SimConfig:
    """The configuration of one simulation.

    Attributes:
        prefill_policy: one of PREFILL_POLICIES.
        decode_policy: one of DECODE_POLICIES.
        instances: prefill and decode instances, such as "1P1D".
        lookahead: whether a batch or step is composed when the one before it starts, as SGLang's
            overlap schedule does.
        decode_lookahead: the same for decode steps; needs `lookahead`.
        hold: whether the first token is held back until its decode slot is ready, at most until
            the deadline.
        routing: how arrivals are bound to prefill instances, one of ROUTINGS.
        decode_cap: static cap on the decode batch of a rank; 0: the profile's limit.
        dp_attention: data-parallel ranks of each decode instance, which wait for the slowest in
            every step; 0: those of the profile.
        placement: how requests are bound to ranks, one of PLACEMENTS. The first four are SGLang's:
            in turn, at random by the bootstrap room, fewest requests, fewest tokens.
        stages: one of STAGES; "prefill": nothing is decoded, "decode": prompts are prefilled at
            once.
        lengths: whether the slack policy learns output lengths.
        prefill_bias: predicted / true batch time.
        decode_bias: predicted / true step time.
        noise: relative standard deviation of true batch and step times.
        change_cost_s: added to a step in which a resident is skipped or resumed, seconds.
        contention: whether the transfers of a prefill instance share its link one after another.
        preallocate: whether a prompt is prefilled only once a decode instance has memory for it.
        grants: order in which prompts get that memory: "arrival" is SGLang's, "deadline" prefers
            feasible ones, see `kairos.policy.preallocation`; "": by deadline under urgency, by
            arrival otherwise.
        handshake_s: from the grant of that memory until prefill may begin, seconds.
        first_token: the server that sends it: "prefill" at the end of its batch, or "decode" when
            it admits the request, as SGLang's disaggregation does.
        admission: whether arrivals are admitted, degraded or rejected by a forecast.
        seed: of the noise.
        urgency: parameters of the urgency policy.
        slack: parameters of the slack policy.
    """

    prefill_policy: str = "urgency"
    decode_policy: str = "slack"
    instances: str = "1P1D"
    lookahead: bool = True
    decode_lookahead: bool = True
    hold: bool = False
    routing: str = "late"
    decode_cap: int = 0
    dp_attention: int = 0
    placement: str = "kairos"
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
        for name, choices in _CHOICES.items():
            check_choice(_option(name), getattr(self, name), choices)
        for name, allowed in _RANGES.items():
            check_range(_option(name), getattr(self, name), allowed)
        if self.grants:
            check_choice("grants", self.grants, GRANT_ORDERS)
        if self.preallocate and self.stages == "decode":
            raise InputError(
                "preallocate: with stages 'decode' no prompt waits for memory; leave one out"
            )
        prefill_instances, _ = self.shape
        if self.admission and (prefill_instances > 1 or self.stages == "decode"):
            raise InputError(
                f"admission: {self.instances} with stages {self.stages!r} is not simulated; "
                "it needs one prefill instance, and stages 'both' or 'prefill'"
            )

    def as_on_engine(self, profile: Profile) -> "SimConfig":
        """Return this configuration with the ways in which servers differ from an ideal engine.

        Batches are composed one ahead. A prompt first waits for decode memory, unless decode is
        simulated alone, and for the handshake of both servers, which takes 20 ms from an arrival to
        the batch of an idle prefill server. The transfers of a prefill server share its link. The
        decode server sends the first token, and urgency plans for the time until then.

        Args:
            profile: latencies of the servers.
        """
        return replace(
            self,
            lookahead=True,
            preallocate=self.stages != "decode",
            handshake_s=0.02,
            contention=True,
            first_token="decode",
            urgency=prefill_urgency(profile.kv.transfer_s(profile.limits.chunk_tokens)),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of prefill and of decode instances."""
        return parse_instances(self.instances, "instances")

    @property
    def grants_in_order(self) -> bool:
        """Whether decode memory is granted in the order of arrival."""
        return self.grants == "arrival" or (not self.grants and self.prefill_policy != "urgency")


def _option(field_name: str) -> str:
    """A field in words, as errors name it."""
    return field_name.removesuffix("_s").replace("_", " ")
