"""What all runs of a replay have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kairos.latency import Profile
from kairos.replay.client.api import CompletionsApi
from kairos.replay.client.client import ClientConfig
from kairos.replay.client.target import UrlTarget

if TYPE_CHECKING:
    from rich.console import Console

DRAIN_S = 300.0
"""Seconds that a run may take beyond its arrivals, before dilation."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What all runs of a replay have in common.

    Attributes:
        instances: such as "1P1D".
        profile: latency profile of predictions, dilated if the run is.
        emulated: whether it also drives the servers' clock.
        url: of servers that run already; None where each run starts its own.
        start_s: where in the trace the plan begins, seconds.
        limits: of a request and of an arm.
        out: folder of records and logs.
        command: the command line.
        allow_disturbed: count runs that were not quiet.
        mini_lb: arms without a router are sent through upstream's.
    """

    instances: str
    profile: Profile
    emulated: bool
    url: str | None
    start_s: float
    limits: ClientConfig
    out: Path
    command: tuple[str, ...]
    allow_disturbed: bool
    console: "Console"
    mini_lb: bool = False


def reached(config: RunConfig) -> dict[str, list[str]]:
    """What the header says of servers that run already; empty where a run starts its own."""
    if config.url is None:
        return {}
    api = config.limits.api
    found = {"client sends to": UrlTarget(config.url).describe(), "API": [api.path]}
    if isinstance(api, CompletionsApi):
        found |= {"model": [api.model], "SLO headers": [api.slo_headers]}
    return found
