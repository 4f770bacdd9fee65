"""The configuration that all runs of a replay share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kairos.cluster import DpAttention
from kairos.latency import Profile
from kairos.replay.client.api import CompletionsApi
from kairos.replay.client.job import ClientConfig
from kairos.replay.client.target import UrlTarget

if TYPE_CHECKING:
    from rich.console import Console

DRAIN_S = 300.0
"""Seconds that a run may last beyond its arrivals, before dilation."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The configuration that all runs of a replay share.

    Attributes:
        instances: number of prefill and decode servers, such as "1P1D".
        dp_attention: data-parallel attention ranks of a server of each role.
        profile: latency profile of predictions, dilated if the run is.
        url: address of servers that run already; None if each run starts its own.
        client: limits and request format.
        out: folder of records and logs.
        command: the command line.
        allow_disturbed: whether disturbed runs count.
        console: terminal output.
        mini_lb: whether requests of arms without a router pass through upstream's.
    """

    instances: str
    dp_attention: DpAttention
    profile: Profile
    url: str | None
    client: ClientConfig
    out: Path
    command: tuple[str, ...]
    allow_disturbed: bool
    console: "Console"
    mini_lb: bool = False

    @property
    def emulated(self) -> bool:
        """Whether the profile drives the servers' clock."""
        return self.url is None

    def url_servers(self) -> dict[str, list[str]]:
        """Return the header's description of servers that run already; empty for own servers."""
        if self.url is None:
            return {}
        api = self.client.api
        found = {"client sends to": UrlTarget(self.url).describe(), "API": [api.path]}
        if isinstance(api, CompletionsApi):
            found |= {"model": [api.model], "SLO headers": [api.slo_headers]}
        return found
