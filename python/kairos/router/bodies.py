"""Memory for bodies on their way to the queue, bounded over all connections."""

from typing import Self

from kairos.router.outcome import Outcome
from kairos.router.refusal import RefusedError

_RETRY_S = 1.0


class Bodies:
    """What the bodies that are read, and counted, take together; the queue bounds what it has.

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

    def hold(self) -> "HeldBody":
        """Memory for one body, for as long as its `with` block lasts."""
        return HeldBody(self)

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


class HeldBody:
    """What one body has of `Bodies`.

    Attributes:
        size: bytes.
    """

    __slots__ = ("_bodies", "size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bodies.give(self.size)
        self.size = 0

    def reach(self, size: int) -> None:
        """Have `size` bytes at least.

        Raises:
            RefusedError: there is not so much left.
        """
        if size > self.size:
            self._bodies.take(size - self.size)
            self.size = size
