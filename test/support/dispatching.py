"""A dispatcher with instances and requests, for tests of the router's scheduling."""

from typing import Any

from kairos.latency import Profile, load_profile
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.params import DispatchParams
from kairos.router.queue.request import Assignment, RequestDemand
from kairos.router.workers.endpoint import Role
from kairos.slo import Slo

PROFILE: Profile = load_profile("minimax-m2.5-tp4-h200")


def work(id: int, arrival_s: float = 0.0, tokens: int = 1_000, **fields: Any) -> RequestDemand:
    """A request of tenant "a" with a TTFT of two seconds unless said otherwise."""
    ttft_ms = fields.pop("ttft_ms", 2_000.0)
    tpot_ms = fields.pop("tpot_ms", 50.0)
    slo = Slo(ttft_ms, tpot_ms, fields.pop("slo_class", "default"))
    return RequestDemand(
        id=id,
        tenant=fields.pop("tenant", "a"),
        slo=slo,
        arrival_s=arrival_s,
        input_tokens=tokens,
        max_output_tokens=fields.pop("max_output_tokens", 100),
        **fields,
    )


def dispatcher(
    prefill: int = 1,
    decode: int = 1,
    *,
    preemptive: bool = False,
    profile: Profile | None = PROFILE,
    decode_kv: int | None = None,
    **params: Any,
) -> Dispatcher:
    """Instances "p0", "p1", ... and "d0", "d1", ..."""
    made = Dispatcher(DispatchParams(**params))
    for i in range(prefill):
        made.add_worker(f"p{i}", Role.PREFILL, profile, preemptive=preemptive)
    for i in range(decode):
        made.add_worker(f"d{i}", Role.DECODE, profile, kv_tokens=decode_kv)
    return made


def ids(assignments: list[Assignment]) -> list[int]:
    return [assignment.id for assignment in assignments]
