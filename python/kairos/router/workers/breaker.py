"""A circuit breaker of one worker."""

from enum import Enum


class BreakerState(Enum):
    """State of a breaker; its value is the metric's."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Counts failures in a row of one worker.

    Closed: requests go to the worker. Open: no request does. Half open: a probe through a whole
    pair decides, and no client's request is risked.

    Args:
        failures: in a row that open it.
        open_s: until a probe is due.
    """

    def __init__(self, failures: int, open_s: float) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._digests: set[int] = set()  # of requests that were answered with an error
        self._until_s = 0.0
        self.state = BreakerState.CLOSED

    def succeeded(self) -> None:
        """Note a completed request. It may be an older one, so an open breaker stays open."""
        self._failures = 0
        self._digests.clear()

    def proven(self) -> None:
        """Close the breaker: a probe was completed."""
        self.succeeded()
        self.state = BreakerState.CLOSED

    def failed(self, now_s: float, digest: int | None = None) -> bool:
        """Note a failure that may be the worker's; return whether it opened the breaker.

        `digest` is the request's, where that may be at fault: the same one counts once.
        """
        if digest is not None and digest in self._digests:
            return False
        if digest is not None:
            self._digests.add(digest)
        self._failures += 1
        if self.state is BreakerState.CLOSED and self._failures < self._limit:
            return False
        opened = self.state is not BreakerState.OPEN
        self.state = BreakerState.OPEN
        self._until_s = now_s + self._open_s
        return opened

    def may_probe(self, now_s: float) -> bool:
        """Whether a probe is due; if so, the breaker is half open."""
        if self.state is BreakerState.OPEN and now_s >= self._until_s:
            self.state = BreakerState.HALF_OPEN
        return self.state is BreakerState.HALF_OPEN
