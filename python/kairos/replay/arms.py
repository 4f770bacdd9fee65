"""The server configurations that a replay compares."""

from dataclasses import dataclass

from kairos.errors import InputError
from kairos.replay.plan import Plan
from kairos.workload.slo_sets import TIERS

# Upstream's orders of the prefill waiting queue, by the name of the arm.
_UPSTREAM = {
    "fcfs": "fcfs",
    "lpm": "lpm",
    "hrrn": "hrrn",
    "sjf": "shortest-prefill-first",
    "shortest-prefill-first": "shortest-prefill-first",
}
ARMS = (*_UPSTREAM, "kairos")

# Cumulative streaming sends all ids of a request again with every token, which costs server and
# client time that grows with the square of its length. Upstream's own flag, the same on all arms.
_COMMON = ("--incremental-streaming-output",)


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """Attributes:
    name: as in the report.
    args: server flags, the same on prefill and decode servers.
    prefill_args: flags of prefill servers only. A decode server has no prefix cache, without which
        some of upstream's orders refuse to start.
    kairos: whether the servers run with `--kairos` and get each request's SLO.
    """

    name: str
    args: tuple[str, ...]
    kairos: bool
    prefill_args: tuple[str, ...] = ()


def arm_spec(name: str, plan: Plan, profile: str) -> ArmSpec:
    """The configuration called `name`.

    Args:
        plan: its SLO set decides which classes the servers have to know.
        profile: what Kairos predicts with, shipped name or path.

    Raises:
        InputError: unknown name.
    """
    if name in _UPSTREAM:
        return ArmSpec(name, _COMMON, False, ("--schedule-policy", _UPSTREAM[name]))
    if name != "kairos":
        raise InputError(f"--arms: {name!r} is not one of {', '.join(ARMS)}")
    args = ["--kairos-profile", profile, *_COMMON]
    if plan.slo_set == "tiers":
        # Requests carry their own objectives; the servers only have to know the class names.
        for tier in TIERS:
            args += ["--kairos-slo-class", f"{tier.name}={1e3 * tier.base_s:g},{tier.tpot_ms:g}"]
    return ArmSpec(name, tuple(args), True)


def parse_arms(text: str) -> list[str]:
    """Names in `--arms`.

    Raises:
        InputError: unknown or repeated name, or none.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ARMS:
            raise InputError(f"--arms: {name!r} is not one of {', '.join(ARMS)}")
        if names.count(name) > 1:
            raise InputError(f"--arms: {name!r} is named twice")
    return names
