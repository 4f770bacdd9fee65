"""Memory for bodies that are being read, bounded over all connections."""

from kairos.router.outcome import Outcome
from kairos.router.refusal import RefusedError

_RETRY_S = 1.0


class Bodies:
    """What the bodies being read take together; the queue bounds those that were read.

    Args:
        limit: bytes.
        status: of a refusal.

    Attributes:
        held: bytes taken now.
    """

    def __init__(self, limit: int, status: int) -> None:
        self.held = 0
        self._limit = limit
        self._status = status

    def take(self, size: int) -> None:
        """Take memory; `give` must follow.

        Raises:
            RefusedError: there is not so much left.
        """
        if self.held + size > self._limit:
            raise RefusedError(
                self._status,
                Outcome.REJECTED_FULL,
                "reading_bytes",
                "too many bytes of other requests are being read",
                _RETRY_S,
            )
        self.held += size

    def give(self, size: int) -> None:
        """Give it back."""
        self.held -= size
