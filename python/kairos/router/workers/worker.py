"""One prefill or decode worker and its state."""

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kairos.router.workers.breaker import Breaker
from kairos.router.workers.endpoint import Role, WorkerEndpoint
from kairos.router.workers.server_info import ServerInfo
from kairos.slo import DEFAULT_CLASS

MAX_ABORTS = 16
"""Aborts in flight to one server; a storm of them has taken clusters down."""
_TOGETHER_S = 1.0
"""Legs that break within this time are taken to break for one reason."""


class State(Enum):
    """Whether a worker gets requests.

    STARTING: it is new, restarted or unfit, and waits for a probe through a whole pair. READY: it
    gets requests. DOWN: its health checks fail. OPEN: its breaker is open. DRAINING: it gets
    nothing new.
    """

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    OPEN = "open"
    DRAINING = "draining"


@dataclass(slots=True, eq=False)
class Worker:
    """A worker and its state.

    Attributes:
        info: the last answer to /server_info; None before the first.
        attempts: attempts whose leg runs here.
        suspect: it failed, and may have been restarted.
        leaving: it is forgotten once it is idle.
        drained: by the administrator, until its restart or an undrain.
        failed_checks: health checks that failed in a row.
        unanswered_since_s: when the first of the health checks without an answer began.
        reason: why it does not get requests, for /workers; empty where it does.
        aborts: bounds the aborts in flight.
    """

    endpoint: WorkerEndpoint
    breaker: Breaker
    state: State = State.STARTING
    info: ServerInfo | None = None
    attempts: set[Any] = field(default_factory=set)
    suspect: bool = True
    leaving: bool = False
    drained: bool = False
    restarts: int = 0
    failed_checks: int = 0
    unanswered_since_s: float | None = None
    reason: str = ""
    _broken_legs: list[tuple[float, Any]] = field(default_factory=list)
    aborts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_ABORTS))

    @property
    def key(self) -> str:
        return self.endpoint.key

    @property
    def role(self) -> Role:
        return Role(self.endpoint.role)

    @property
    def kairos(self) -> bool:
        """Whether the engine schedules by SLO itself."""
        return self.info is not None and self.info.kairos

    def leg_broke(self, attempt: Any) -> int:
        """Note that the connection of a leg broke.

        Return how many attempts were here: legs that broke within the last second, and running
        ones.
        """
        now_s = time.monotonic()
        self._broken_legs = [
            (at_s, other) for at_s, other in self._broken_legs if now_s - at_s < _TOGETHER_S
        ]
        self._broken_legs.append((now_s, attempt))
        return len({id(other) for _, other in self._broken_legs} | {id(a) for a in self.attempts})

    def knows_class(self, name: str) -> bool:
        """Whether the server accepts an SLO of this class. A server without Kairos accepts any."""
        info = self.info
        return info is None or not info.kairos or name in (DEFAULT_CLASS, *info.slo_classes)
