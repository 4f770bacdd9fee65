"""The server configurations that a replay compares, and what the simulator runs for each."""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from kairos.errors import InputError
from kairos.policy.engine_defaults import prefill_urgency
from kairos.sim.config import SimConfig
from kairos.workload.slo_sets import TIERS

Router = Literal["sglang", "kairos"]

# Upstream's orders of the prefill waiting queue by the name of the arm: its flag's value, and the
# simulator's name of it. Upstream always finishes the prompt that it has started.
_UPSTREAM = {
    "fcfs": ("fcfs", "fcfs"),
    "lpm": ("lpm", "lpm"),
    "hrrn": ("hrrn", "hrrn-np"),
    "sjf": ("shortest-prefill-first", "spf"),
}
# Routers that choose the servers of a request as it arrives: which one, and its flags.
_ROUTED: dict[str, tuple[Router, tuple[str, ...]]] = {
    "router-round-robin": ("kairos", ("--binding", "round-robin", "--show-servers")),
    "router-least-loaded": ("kairos", ("--binding", "least-loaded", "--show-servers")),
    "router-upstream": ("sglang", ("--policy", "cache_aware")),
}
_CAP = re.compile(r"(.+)-cap([1-9][0-9]{0,3})")

# Cumulative streaming sends all ids of a request again with every token, which costs server and
# client time that grows with the square of its length. Upstream's own flag, the same on all arms.
_COMMON = ("--incremental-streaming-output",)

# Upstream's flag, the same on both roles.
_AFTER_PREFILL = ("--disaggregation-decode-allocation-policy", "prefill_complete")

# How emulated servers differ from an ideal engine: batches are composed one ahead, a prompt waits
# for memory on its decode server first, and until both know of it (20 ms from an arrival to the
# batch of an idle prefill server), transfers of a prefill server share its link, and the decode
# server sends the first token.
_ENGINE = SimConfig(
    lookahead=True, preallocate=True, handshake_s=0.02, contention=True, first_token="decode"
)


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """Attributes:
    name: as in the report.
    about: one line for people.
    args: server flags, the same on prefill and decode servers.
    prefill_args, decode_args: flags of one role. A decode server has no prefix cache, without
        which some of upstream's orders refuse to start.
    send_slo: whether requests carry their SLO.
    router, router_args: what they go through, and its flags; None: straight to both servers.
    simulated: the simulator's settings for the same, but for what depends on the profile, see
        `settings`; None: it has no model of it.
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

    def settings(self, transfer_s: float) -> SimConfig | None:
        """The simulator's settings.

        Args:
            transfer_s: of the KV of a full chunk in the profile.
        """
        if self.simulated is None:
            return None
        return replace(self.simulated, urgency=prefill_urgency(transfer_s))


@dataclass(frozen=True, slots=True)
class _Parts:
    """Which parts of Kairos an arm has, and flags of its servers."""

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
        f"kairos, decode memory given after prefill ({' '.join(_AFTER_PREFILL)})",
        prefill=True,
        decode=True,
        args=_AFTER_PREFILL,
    ),
    "kairos-urgency": _Parts("urgency only, decode servers are upstream's", prefill=True),
    "kairos-slack": _Parts("slack only, prefill servers are upstream's fcfs", decode=True),
    "kairos-router": _Parts("Kairos' router only, all servers are upstream's fcfs", router=True),
    "kairos-routed": _Parts("router, urgency and slack", prefill=True, decode=True, router=True),
    "kairos-all": _Parts(
        "router, urgency, slack and hold", prefill=True, decode=True, hold=True, router=True
    ),
}
ARMS = (*_UPSTREAM, *_ROUTED, *_KAIROS)
ALLOWED = f"{', '.join(ARMS)}; upstream's with -capN (fcfs-cap32) limit the decode batch to N"


def arm_spec(name: str, profile: str, slo_set: str = "L3") -> ArmSpec:
    """The configuration called `name`.

    Args:
        profile: what Kairos predicts with, shipped name or path.
        slo_set: decides which classes the servers have to know.

    Raises:
        InputError: unknown name.
    """
    if name in _KAIROS:
        return _kairos(name, _KAIROS[name], profile, slo_set)
    if name in _ROUTED:
        router, router_args = _ROUTED[name]
        return ArmSpec(
            name,
            f"{router} router with {' '.join(router_args)}, all servers are upstream's fcfs",
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
        simulated=replace(
            _ENGINE,
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
        # Requests carry their own objectives; the servers only have to know the class names.
        for tier in TIERS:
            value = f"{tier.name}={1e3 * tier.base_s:g},{tier.tpot_ms:g}"
            flags += ["--kairos-slo-class", value]
            router_flags += ["--slo-class", value]
    settings = replace(
        _ENGINE,
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
        # The simulator has no router in front of servers that order by themselves, no look-ahead
        # on decode servers only, and no handshake after prefill.
        simulated=settings if parts.overlap and not parts.router and not parts.args else None,
    )


def parse_arms(text: str) -> list[str]:
    """Names in `--arms`.

    Raises:
        InputError: unknown or repeated name, or none.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        arm_spec(name, profile="")
        if names.count(name) > 1:
            raise InputError(f"--arms: {name!r} is named twice")
    return names
