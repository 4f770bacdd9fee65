"""Whether the queue has room for a request."""

from dataclasses import dataclass

from kairos.router.queue.admission import Reason
from kairos.router.queue.demand import RequestDemand
from kairos.router.queue.params import DispatchParams


@dataclass(slots=True)
class Held:
    """What waits: of everybody, or of one tenant."""

    requests: int = 0
    sequences: int = 0
    bytes: int = 0

    def add(self, work: RequestDemand, sign: int = 1) -> None:
        self.requests += sign
        self.sequences += sign * work.sequences
        self.bytes += sign * work.body_bytes


class QueueLimits:
    """Counts what waits, in all and per tenant.

    A tenant's part is bounded by what is still free (dynamic thresholds): a tenant that floods the
    queue stops itself before it is full, so others find room without anything being set aside.
    """

    def __init__(self) -> None:
        self.total = Held()
        self._tenants: dict[str, Held] = {}

    def add(self, work: RequestDemand) -> None:
        self.total.add(work)
        self._tenants.setdefault(work.tenant, Held()).add(work)

    def remove(self, work: RequestDemand) -> None:
        self.total.add(work, -1)
        held = self._tenants[work.tenant]
        held.add(work, -1)
        if not held.requests:
            del self._tenants[work.tenant]

    def refuses(self, work: RequestDemand, params: DispatchParams) -> tuple[Reason, str] | None:
        """Why `work` finds no room, and what to tell the client; None if it does."""
        total = self.total
        for reason, held, more, most, unit in (
            (Reason.REQUESTS, total.requests, 1, params.max_requests, "requests"),
            (Reason.SEQUENCES, total.sequences, work.sequences, params.max_sequences, "sequences"),
            (Reason.BYTES, total.bytes, work.body_bytes, params.max_bytes, "bytes"),
        ):
            if held + more > most:
                return reason, f"the queue holds {held} of at most {most} {unit}"
        own = self._tenants.get(work.tenant, Held())
        room = params.tenant_room * params.tenant_weights.get(work.tenant, 1.0)
        for held, more, free, unit in (
            (own.requests, 1, params.max_requests - total.requests, "requests"),
            (own.bytes, work.body_bytes, params.max_bytes - total.bytes, "bytes"),
        ):
            if held + more > max(room * free, more):
                return Reason.TENANT, f"your part of the queue is used up ({held} {unit} wait)"
        return None
