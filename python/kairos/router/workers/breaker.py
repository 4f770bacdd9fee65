"""Takes a worker out after failures in a row."""

from enum import Enum


class BreakerState(Enum):
    """The value is the metric's."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Counts failures in a row of one worker.

    Closed: requests go to the worker. Open: none do. Half open: one probe through a whole pair
    decides, not a client's request. Times are monotonic seconds.
    """

    def __init__(self, failures: int, open_s: float) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._digests: set[int] = set()  # of requests that were answered with an error
        self._until_s = 0.0
        self.state = BreakerState.CLOSED

    def succeeded(self) -> None:
        """A request came to its end. One that began earlier proves nothing to an open breaker."""
        self._failures = 0
        self._digests.clear()

    def proven(self) -> None:
        """A probe came to its end."""
        self.succeeded()
        self.state = BreakerState.CLOSED

    def failed(self, now_s: float, digest: int | None = None) -> bool:
        """A failure that may be the worker's; whether it opened the breaker.

        Args:
            digest: of the request where the failure may as well be the request's: sending it again
                and again counts once.
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
        """Whether it is time for a probe; if so, it is half open now."""
        if self.state is BreakerState.OPEN and now_s >= self._until_s:
            self.state = BreakerState.HALF_OPEN
        return self.state is BreakerState.HALF_OPEN
