"""Fair queueing of tenants within a class."""

from collections.abc import Mapping

_MAX_FLOWS = 4096


class FairQueueing:
    """Start-time fair queueing over flows, one flow per (class, tenant).

    A flow's virtual time is the service it got, in seconds, divided by its weight. A flow that
    starts to wait is moved up to its class's virtual time, so that an idle flow earns no share.
    Costs O(flows of the class) per served request.

    Urgency decides the order, except where `behind` finds a waiting flow that has fallen back by
    more than the allowed slack.
    """

    def __init__(self) -> None:
        self._index: dict[tuple[str, str], int] = {}
        self._flows: dict[int, tuple[str, str]] = {}
        self._virtual: dict[int, float] = {}
        self._class_virtual: dict[str, float] = {}
        self._waiting: dict[str, dict[int, int]] = {}  # class -> flow -> requests that wait
        self._next = 0

    def enter(self, slo_class: str, tenant: str) -> int:
        """Note a request that starts to wait; return the index of its flow."""
        key = (slo_class, tenant)
        if key not in self._index:
            self._index[key] = self._next
            self._flows[self._next] = key
            self._virtual[self._next] = 0.0
            self._next += 1
        flow = self._index[key]
        waiting = self._waiting.setdefault(slo_class, {})
        if flow not in waiting:
            floor = self._class_virtual.get(slo_class, 0.0)
            self._virtual[flow] = max(self._virtual[flow], floor)
        waiting[flow] = waiting.get(flow, 0) + 1
        return flow

    def leave(self, flow: int) -> None:
        """Note that a request of a flow stopped waiting."""
        slo_class, _ = self._flows[flow]
        waiting = self._waiting[slo_class]
        waiting[flow] -= 1
        if not waiting[flow]:
            del waiting[flow]
            if len(self._flows) > _MAX_FLOWS:
                self._forget_idle()

    def charge(self, flow: int, work_s: float, weights: Mapping[str, float]) -> None:
        """Charge a flow that still waits for `work_s` seconds; negative seconds are given back."""
        slo_class, tenant = self._flows[flow]
        waiting = self._waiting.get(slo_class, {})
        if waiting:
            oldest = min(self._virtual[other] for other in waiting)
            self._class_virtual[slo_class] = max(self._class_virtual.get(slo_class, 0.0), oldest)
        self._virtual[flow] += work_s / weights.get(tenant, 1.0)

    def behind(self, flow: int, slack_s: float) -> int:
        """Return the flow that is furthest behind in its class, beyond `slack_s`; -1: none."""
        slo_class, _ = self._flows[flow]
        waiting = self._waiting[slo_class]
        if len(waiting) < 2:
            return -1
        last = min(waiting, key=lambda other: (self._virtual[other], self._flows[other]))
        return last if self._virtual[flow] - self._virtual[last] > slack_s else -1

    def _forget_idle(self) -> None:
        waiting = {flow for flows in self._waiting.values() for flow in flows}
        for flow, key in list(self._flows.items()):
            if flow not in waiting:
                del self._flows[flow], self._virtual[flow], self._index[key]
