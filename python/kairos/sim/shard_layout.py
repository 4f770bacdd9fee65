"""The instances and router shards of a sharded simulation."""

from dataclasses import dataclass, field

from kairos.errors import InputError
from kairos.router.queue.params import DispatchParams
from kairos.validation import check_choice

BALANCERS = ("random", "least")
ENGINES = ("urgency", "fcfs")


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Router shards, and the instances of each.

    Attributes:
        shards: number of router shards, each with a dispatcher.
        prefill: prefill instances of each shard.
        decode: decode instances of each shard.
        balancer: choice of the shard: "random", or the one with the "least" requests.
        engine: order of a prefill instance's own queue: "urgency" (Kairos) or "fcfs" (SGLang).
        params: of every dispatcher.
        handover_s: from the grant of decode memory until the prompt can be computed, seconds.
        step_s: one decode step, seconds.
        seed: of the balancer.
    """

    shards: int
    prefill: int
    decode: int
    balancer: str = "random"
    engine: str = "urgency"
    params: DispatchParams = field(default_factory=DispatchParams)
    handover_s: float = 0.02
    step_s: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shards", "prefill", "decode"):
            if getattr(self, name) < 1:
                raise InputError(f"layout: {name} {getattr(self, name)!r} must be at least 1")
        check_choice("layout: balancer", self.balancer, BALANCERS)
        check_choice("layout: engine", self.engine, ENGINES)
