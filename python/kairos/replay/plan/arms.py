"""The server configurations that a replay compares, and the simulator's equivalents."""

import re
from dataclasses import dataclass, field
from typing import Literal

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.sim.config import SimConfig
from kairos.workload.slo_sets import TIERS

Router = Literal["sglang", "kairos"]

# Upstream's orders of the prefill waiting queue, by arm: the value of the server flag, and the
# simulator's name of the order. Upstream always finishes the prompt that it has started.
_UPSTREAM = {
    "fcfs": ("fcfs", "fcfs"),
    "lpm": ("lpm", "lpm"),
    "hrrn": ("hrrn", "hrrn-np"),
    "sjf": ("shortest-prefill-first", "spf"),
}
# Routers that choose the servers of a request on arrival: the router and its flags, by arm.
_ROUTED: dict[str, tuple[Router, tuple[str, ...]]] = {
    "router-round-robin": ("kairos", ("--binding", "round-robin", "--show-servers")),
    "router-least-loaded": ("kairos", ("--binding", "least-loaded", "--show-servers")),
    "router-upstream": ("sglang", ("--policy", "cache_aware")),
}
_CAP = re.compile(r"(.+)-cap([1-9][0-9]{0,3})")

# Upstream's own flag, set on all arms. Without it every token event repeats all earlier ids of the
# request, which costs server and client time that grows with the square of the output length.
_COMMON = ("--incremental-streaming-output",)

# Upstream's flag, set on both roles.
_AFTER_PREFILL = ("--disaggregation-decode-allocation-policy", "prefill_complete")


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """Server configuration of an arm.

    Attributes:
        name: name in the report.
        about: description in one line.
        args: server flags of both roles.
        prefill_args: flags of prefill servers only. A decode server has no prefix cache, and some
            of upstream's orders refuse to start without one.
        decode_args: flags of decode servers only.
        send_slo: whether requests carry their SLO.
        router: router that requests pass through; None sends them to both servers directly.
        router_args: flags of the router.
        simulated: the simulator's configuration of the same arm, without the differences between
            servers and an ideal engine; None if the simulator has no model of the arm.
    """

    name: str
    about: str
    args: tuple[str, ...] = _COMMON
    prefill_args: tuple[str, ...] = ()
    decode_args: tuple[str, ...] = ()
    send_slo: bool = False
    router: Router | None = None
    router_args: tuple[str, ...] = ()
    simulated: SimConfig | None = field(default=None, compare=False)

    def settings(self, profile: Profile) -> SimConfig | None:
        """Return the simulator's configuration; None if the simulator has no model of the arm.

        Args:
            profile: latencies of the servers.
        """
        return None if self.simulated is None else self.simulated.as_on_engine(profile)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of Kairos that an arm enables, and further flags of its servers.

    Attributes:
        about: description in one line.
        prefill: whether prefill servers schedule by urgency.
        decode: whether decode servers schedule by slack.
        hold: whether decode servers hold tokens back.
        router: whether requests pass through Kairos' router.
        overlap: whether prefill servers use the overlap schedule.
        args: further flags of both roles.
    """

    about: str
    prefill: bool = False
    decode: bool = False
    hold: bool = False
    router: bool = False
    overlap: bool = True
    args: tuple[str, ...] = ()


_KAIROS = {
    "kairos": _Parts("urgency on prefill and slack on decode servers", prefill=True, decode=True),
    "kairos-hold": _Parts("kairos with --kairos-hold", prefill=True, decode=True, hold=True),
    "kairos-no-overlap": _Parts(
        "kairos, prefill servers with --disable-overlap-schedule",
        prefill=True,
        decode=True,
        overlap=False,
    ),
    "kairos-prefill-complete": _Parts(
        f"kairos, decode memory allocated after prefill ({' '.join(_AFTER_PREFILL)})",
        prefill=True,
        decode=True,
        args=_AFTER_PREFILL,
    ),
    "kairos-urgency": _Parts("urgency only, upstream's decode scheduler", prefill=True),
    "kairos-slack": _Parts("slack only, upstream's fcfs on prefill servers", decode=True),
    "kairos-router": _Parts("Kairos' router only, upstream's fcfs on all servers", router=True),
    "kairos-routed": _Parts("router, urgency and slack", prefill=True, decode=True, router=True),
    "kairos-all": _Parts(
        "router, urgency, slack and hold", prefill=True, decode=True, hold=True, router=True
    ),
}
ARMS = (*_UPSTREAM, *_ROUTED, *_KAIROS)
ALLOWED = (
    f"{', '.join(ARMS)}; the suffix -capN on upstream's orders (fcfs-cap32) limits the decode "
    "batch to N"
)


def arm_spec(name: str, profile: str, slo_set: str = "L3") -> ArmSpec:
    """Return the configuration of the arm `name`.

    Args:
        name: one of ARMS, or an order of upstream with the suffix -capN.
        profile: latency profile for predictions, shipped name or path.
        slo_set: SLO set, which decides the classes that servers must know.

    Raises:
        InputError: unknown name.
    """
    if name in _KAIROS:
        return _kairos(name, _KAIROS[name], profile, slo_set)
    if name in _ROUTED:
        router, router_args = _ROUTED[name]
        return ArmSpec(
            name,
            f"{router} router with {' '.join(router_args)}, upstream's fcfs on all servers",
            prefill_args=("--schedule-policy", "fcfs"),
            router=router,
            router_args=router_args,
        )
    capped = _CAP.fullmatch(name)
    base = capped[1] if capped else name
    if base not in _UPSTREAM:
        raise InputError(f"--arms: {name!r} is not one of {ALLOWED}")
    flag, order = _UPSTREAM[base]
    cap = int(capped[2]) if capped else 0
    return ArmSpec(
        name,
        f"upstream, {flag}" + (f", decode batch of {cap} at most" if cap else ""),
        prefill_args=("--schedule-policy", flag),
        decode_args=("--max-running-requests", str(cap)) if cap else (),
        simulated=SimConfig(
            prefill_policy=order,
            decode_policy="continuous",
            decode_cap=cap,
            grants="arrival",
        ),
    )


def _kairos(name: str, parts: _Parts, profile: str, slo_set: str) -> ArmSpec:
    flags = ["--kairos", "--kairos-profile", profile]
    router_flags = ["--profile", profile, "--show-servers"]
    if slo_set == "tiers":
        # Requests carry their own objectives; servers only need the class names.
        for tier in TIERS:
            value = f"{tier.name}={1e3 * tier.base_s:g},{tier.tpot_ms:g}"
            flags += ["--kairos-slo-class", value]
            router_flags += ["--slo-class", value]
    settings = SimConfig(
        prefill_policy="urgency" if parts.prefill else "fcfs",
        decode_policy="slack" if parts.decode else "continuous",
        hold=parts.hold,
        grants="deadline" if parts.decode else "arrival",
    )
    return ArmSpec(
        name,
        parts.about,
        args=(*_COMMON, *parts.args),
        prefill_args=(
            *(flags if parts.prefill else ()),
            *([] if parts.overlap else ["--disable-overlap-schedule"]),
        ),
        decode_args=(*(flags if parts.decode else ()), *(["--kairos-hold"] * parts.hold)),
        send_slo=True,
        router="kairos" if parts.router else None,
        router_args=tuple(router_flags) if parts.router else (),
        # The simulator has no model of a router in front of servers that schedule by themselves,
        # of look-ahead on decode servers only, or of a handshake after prefill.
        simulated=settings if parts.overlap and not parts.router and not parts.args else None,
    )


def parse_arms(text: str) -> list[str]:
    """Return the names in the value of `--arms`.

    Raises:
        InputError: unknown or repeated name, or none.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        arm_spec(name, profile="")
        if names.count(name) > 1:
            raise InputError(f"--arms: {name!r} is named twice")
    return names
