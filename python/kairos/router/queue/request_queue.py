"""The requests that wait for a pair, sorted by deadline."""

from enum import Enum

import numpy as np
import numpy.typing as npt

from kairos.policy.sorted_rows import SortedRows
from kairos.router.queue.request import QueuedRequest


class DispatchReason(Enum):
    """The reason why a request is the next one."""

    URGENCY = "it is the most urgent"
    RESERVATION = "a decode worker is reserved for it"
    SHARE = "its tenant is behind its share"
    STARVATION = "it has waited too long"


class WaitingQueue:
    """Requests by (deadline, id).

    The first construction in a process compiles or loads the kernels (seconds, once per machine).
    """

    def __init__(self) -> None:
        from kairos.policy.moore_hodgson import FEASIBLE
        from kairos.router.queue import order_kernel

        self.entries: dict[int, QueuedRequest] = {}
        self._kernel = order_kernel
        self._feasible = FEASIBLE
        self._table = SortedRows(order_kernel.ROW)
        # Compiles.
        self.classify(0.0, np.empty((0, 2)), 1, 1.0, 0.0)
        self.pick(0.0)
        self.oldest_starved(0.0, 1.0)
        order_kernel.work_ahead(self._table.live, 0.0, 1.0, 0.0)

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, entry: QueuedRequest) -> None:
        """Queue a request; its state is void before the next `classify`."""
        work, due_s = entry.work, entry.work.deadline_s
        row = due_s, work.id, work.arrival_s, entry.work_s, entry.flow, work.best_effort
        self._table.add(due_s, work.id, (*row, self._feasible))
        self.entries[work.id] = entry

    def remove(self, id: int) -> QueuedRequest:
        """Remove a request. KeyError if it is not queued."""
        self._table.remove(id)
        return self.entries.pop(id)

    def classify(
        self,
        now_s: float,
        held: npt.NDArray[np.float64],
        workers: int,
        factor: float,
        base_latency_s: float,
    ) -> None:
        """Decide which requests are feasible, before `pick`.

        See `order_kernel.classify`; `held` need not be sorted.
        """
        if len(held) > 1:
            held = held[np.argsort(held[:, 0], kind="stable")]
        self._kernel.classify(self._table.live, now_s, held, workers, factor, base_latency_s)

    def pick(self, now_s: float, flow: int = -1) -> QueuedRequest | None:
        """Return the most urgent request that was not passed over."""
        return self._at(self._kernel.pick(self._table.live, now_s, flow))

    def oldest_starved(self, now_s: float, after: float) -> QueuedRequest | None:
        """Return the oldest request past `after` times its TTFT objective that is not feasible."""
        return self._at(self._kernel.oldest_starved(self._table.live, now_s, after))

    def pass_over(self, entry: QueuedRequest) -> None:
        """Do not pick a request again before the next `classify`."""
        self._table.live["state"][self._table.index(entry.work.id)] = self._kernel.CHOSEN

    def passed_over(self, entry: QueuedRequest) -> bool:
        """Whether a request was passed over since the last `classify`."""
        return self._state(entry) == self._kernel.CHOSEN

    def feasible(self, entry: QueuedRequest) -> bool:
        """Whether a request was feasible at the last `classify`."""
        return self._state(entry) == self._feasible

    def work_ahead(
        self, deadline_s: float, now_s: float, factor: float, base_latency_s: float
    ) -> float:
        """Return the seconds of feasible work that is due before `deadline_s`."""
        before = self._table.count_below(deadline_s)
        if not before:
            return 0.0
        rows = self._table.live[:before]
        return float(self._kernel.work_ahead(rows, now_s, factor, base_latency_s))

    def work_s(self) -> float:
        """Return the predicted work of all requests, uncalibrated, seconds."""
        return float(self._table.live["work"].sum())

    def in_order_of_arrival(self) -> list[QueuedRequest]:
        """Return all requests, the oldest at the front."""
        return sorted(self.entries.values(), key=lambda e: (e.work.arrival_s, e.work.id))

    def _state(self, entry: QueuedRequest) -> int:
        return int(self._table.live["state"][self._table.index(entry.work.id)])

    def _at(self, index: int) -> QueuedRequest | None:
        return None if index < 0 else self.entries[int(self._table.live["id"][index])]
