"""One prefill or decode server, as the router knows it."""

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kairos.router.workers.breaker import Breaker
from kairos.router.workers.endpoint import Endpoint, Role
from kairos.slo import DEFAULT_CLASS

MAX_ABORTS = 16
"""Aborts in flight to one server; a storm of them has taken clusters down."""


class State(Enum):
    """STARTING: not reached yet, or restarted; wants a probe through a whole pair. READY: gets
    requests. DOWN: does not answer. OPEN: its breaker is. DRAINING: gets nothing new."""

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    OPEN = "open"
    DRAINING = "draining"


@dataclass(slots=True, eq=False)
class Worker:
    """Attributes:
    start_id: differs after every restart of the server, as far as it can be told.
    kairos: it schedules by SLO itself.
    pairs: attempts in flight; ended when the server is found dead.
    suspect: something went wrong with it; it may have been restarted.
    leaving: it is forgotten once it is idle.
    """

    endpoint: Endpoint
    breaker: Breaker
    state: State = State.STARTING
    start_id: str | None = None
    kairos: bool = False
    pairs: set[Any] = field(default_factory=set)
    suspect: bool = True
    leaving: bool = False
    restarts: int = 0
    failed_checks: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    aborts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_ABORTS))

    @property
    def key(self) -> str:
        return self.endpoint.key

    @property
    def role(self) -> Role:
        return Role(self.endpoint.role)

    def knows_class(self, name: str) -> bool:
        """Whether the server takes an SLO of this class. One without Kairos takes any."""
        if not self.kairos or name == DEFAULT_CLASS:
            return True
        defined = self.info.get("kairos_slo_class")
        return isinstance(defined, list) and any(
            isinstance(one, str) and one.startswith(f"{name}=") for one in defined
        )
