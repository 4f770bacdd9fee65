"""Memory for bodies on their way to the queue, bounded over all connections."""

from typing import Self

from kairos.router.edge.errors import RequestError
from kairos.router.request.outcome import Outcome

_RETRY_S = 1.0
_ROOM = 4.0
"""A tenant's bodies may fill this multiple of weight times free memory, as in `QueueLimits`."""


class BodyMemory:
    """What the bodies that are read, and counted, take together; the queue bounds what it has.

    Only what has arrived counts: to declare a length costs nothing.

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
        self._tenants: dict[str, int] = {}

    def hold(self, tenant: str, weight: float = 1.0) -> "BodyReservation":
        """Memory for one body, for as long as its `with` block lasts."""
        return BodyReservation(self, tenant, _ROOM * weight)

    def take(self, body: "BodyReservation", size: int) -> None:
        """Take `size` bytes more for `body`.

        Raises:
            RequestError: too little is left, or too little for this tenant, which has other bodies.
        """
        free = self._limit - self.held
        if size > free:
            text = "too many bytes of other requests are being read"
            raise RequestError(self._status, Outcome.REJECTED_FULL, "reading_bytes", text, _RETRY_S)
        own = self._tenants.get(body.tenant, 0)
        if own > body.size and own + size > body.room * free:
            text = f"your other requests' bodies use up your part ({own} bytes are being read)"
            raise RequestError(self._status, Outcome.REJECTED_TENANT, "tenant", text, _RETRY_S)
        self.held += size
        self._tenants[body.tenant] = own + size

    def give(self, body: "BodyReservation") -> None:
        """Give back all of it."""
        self.held -= body.size
        left = self._tenants.get(body.tenant, 0) - body.size
        if left:
            self._tenants[body.tenant] = left
        else:
            self._tenants.pop(body.tenant, None)


class BodyReservation:
    """What one body has of `BodyMemory`.

    Attributes:
        tenant: whose it is.
        size: bytes.
        room: its tenant's part, times what is free.
    """

    __slots__ = ("_bodies", "room", "size", "tenant")

    def __init__(self, bodies: BodyMemory, tenant: str, room: float) -> None:
        self.tenant = tenant
        self.room = room
        self.size = 0
        self._bodies = bodies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bodies.give(self)
        self.size = 0

    def grow_to(self, size: int) -> None:
        """Have `size` bytes at least.

        Raises:
            RequestError: see `BodyMemory.take`.
        """
        if size > self.size:
            self._bodies.take(self, size - self.size)
            self.size = size
