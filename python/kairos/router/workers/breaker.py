"""Takes a server out after failures in a row."""

from enum import Enum


class BreakerState(Enum):
    """The value is the metric's."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Closed: requests go to the server. Open: none do. Half open: one probe through a whole pair
    decides; clients' requests are no guinea pigs.

    Times are monotonic seconds.
    """

    def __init__(self, failures: int, open_s: float) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._until_s = 0.0
        self.state = BreakerState.CLOSED

    def succeeded(self) -> None:
        """A request came to its end. One that began earlier proves nothing to an open breaker."""
        self._failures = 0

    def proven(self) -> None:
        """A probe came to its end."""
        self._failures = 0
        self.state = BreakerState.CLOSED

    def failed(self, now_s: float) -> bool:
        """A failure that is the server's; whether it opened the breaker."""
        self._failures += 1
        if self.state is BreakerState.CLOSED and self._failures < self._limit:
            return False
        opened = self.state is not BreakerState.OPEN
        self.state = BreakerState.OPEN
        self._until_s = now_s + self._open_s
        return opened

    def may_probe(self, now_s: float) -> bool:
        """Whether it is time for a probe; if so, it is half open now."""
        if self.state is BreakerState.OPEN and now_s >= self._until_s:
            self.state = BreakerState.HALF_OPEN
        return self.state is BreakerState.HALF_OPEN
