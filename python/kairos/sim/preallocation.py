"""Decode back-pressure: a prompt is prefilled only once a decode instance has room for its KV."""

from kairos.sim.decode import DecodeServer


class Preallocation:
    """Requests that wait for room on a decode instance, and the room that was promised.

    Args:
        servers: the decode instances.
        capacity_tokens: KV that may be promised on each.
        deadline_s: TTFT deadline per request.
        by_deadline: grant room by deadline, requests past it last; otherwise in order of arrival.
    """

    def __init__(
        self,
        servers: list[DecodeServer],
        capacity_tokens: float,
        deadline_s: list[float],
        by_deadline: bool,
    ) -> None:
        self._servers = servers
        self._capacity = capacity_tokens
        self._deadline = deadline_s
        self._by_deadline = by_deadline
        self._waiting: dict[int, int] = {}
        self._promised: dict[int, tuple[int, int]] = {}

    def ask(self, request: int, tokens: int) -> None:
        """Queue a request that needs room for `tokens`."""
        self._waiting[request] = tokens

    def grant(self, now_s: float) -> list[int]:
        """Requests that have room now."""
        order = list(self._waiting)
        if self._by_deadline:
            order.sort(key=lambda r: (self._deadline[r] < now_s, self._deadline[r], r))
        granted = []
        for request in order:
            tokens = self._waiting[request]
            at = min(range(len(self._servers)), key=lambda i: self._servers[i].load_tokens)
            server = self._servers[at]
            if server.load_tokens > 0 and server.load_tokens + tokens > self._capacity:
                break
            server.reserved_tokens += tokens
            self._promised[request] = (at, tokens)
            del self._waiting[request]
            granted.append(request)
        return granted

    def redeem(self, request: int) -> int:
        """The KV of `request` has arrived: index of the instance that it was promised to."""
        at, tokens = self._promised.pop(request)
        self._servers[at].reserved_tokens -= tokens
        return at

    def cancel(self, request: int) -> None:
        """The request ended without decoding."""
        self.redeem(request)
