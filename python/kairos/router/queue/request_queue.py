"""The requests that wait for a pair, sorted by deadline."""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.router.queue.demand import RequestDemand


@dataclass(slots=True)
class QueuedRequest:
    """A request and what the dispatcher adds to it.

    Attributes:
        tried: keys of workers at which an attempt failed.
        work_s: predicted marginal prefill time with the best prefix hit, uncalibrated, seconds.
        flow: index of its (class, tenant) in `FairQueueing`.
        charged_s: what its flow was charged for it, seconds.
    """

    work: RequestDemand
    work_s: float
    flow: int
    charged_s: float = 0.0
    tried: frozenset[str] = frozenset()


class WaitingQueue:
    """Entries sorted by (deadline, id). Adding and removing move memory: some tens of microseconds
    among 10,000.

    The first construction in a process compiles or loads the kernels (seconds, once per machine).
    """

    def __init__(self) -> None:
        from kairos.router.queue import order_kernel

        self.entries: dict[int, QueuedRequest] = {}
        self.sequences = 0
        self.bytes = 0
        self._kernel = order_kernel
        self._keys: list[tuple[float, int]] = []
        self._rows = np.zeros(64, order_kernel.ROW)
        self._state = np.zeros(64, np.int8)
        # Compiles.
        self.classify(0.0, np.empty((0, 2)), 1, 1.0, 0.0)
        self.pick(0.0)
        self.oldest_starved(0.0, 1.0)
        self.work_ahead(0.0, 0.0, 1.0, 0.0)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, entry: QueuedRequest) -> None:
        work = entry.work
        n = len(self._keys)
        if n == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            self._state = np.zeros(len(self._rows), np.int8)
        key = (work.deadline_s, work.id)
        at = bisect_left(self._keys, key)
        insort(self._keys, key)
        raw = self._raw()
        raw[at + 1 : n + 1] = raw[at:n]
        self._rows[at] = (
            work.deadline_s,
            work.id,
            work.arrival_s,
            entry.work_s,
            entry.flow,
            work.best_effort,
        )
        self.entries[work.id] = entry
        self.sequences += work.sequences
        self.bytes += work.body_bytes

    def remove(self, id: int) -> QueuedRequest:
        """KeyError if it is not queued. States of `classify` are void afterwards."""
        entry = self.entries.pop(id)
        at = self._find(entry.work)
        n = len(self._keys)
        raw = self._raw()
        raw[at : n - 1] = raw[at + 1 : n]
        self._state[at : n - 1] = self._state[at + 1 : n]
        del self._keys[at]
        self.sequences -= entry.work.sequences
        self.bytes -= entry.work.body_bytes
        return entry

    def classify(
        self,
        now_s: float,
        held: npt.NDArray[np.float64],
        servers: int,
        factor: float,
        base_latency_s: float,
    ) -> None:
        """Decide which requests are feasible; `pick` follows it. See `order_kernel.classify`;
        `held` need not be sorted."""
        rows, state = self._live()
        before = held[np.argsort(held[:, 0], kind="stable")]
        self._kernel.classify(rows, now_s, before, servers, factor, base_latency_s, state)

    def pick(self, now_s: float, flow: int = -1) -> QueuedRequest | None:
        """The most urgent request that was not passed over."""
        return self._at(self._kernel.pick(*self._live(), now_s, flow))

    def oldest_starved(self, now_s: float, after: float) -> QueuedRequest | None:
        """The oldest infeasible or deferred request past `after` times its TTFT objective."""
        return self._at(self._kernel.oldest_starved(*self._live(), now_s, after))

    def pass_over(self, entry: QueuedRequest) -> None:
        """Do not pick it again before the next `classify`."""
        self._state[self._find(entry.work)] = self._kernel.CHOSEN

    def passed_over(self, entry: QueuedRequest) -> bool:
        """Whether it was passed over since the last `classify`."""
        return bool(self._state[self._find(entry.work)] == self._kernel.CHOSEN)

    def on_time(self, entry: QueuedRequest) -> bool:
        """Whether the last `classify` kept it."""
        return bool(self._state[self._find(entry.work)] == self._kernel.KEPT)

    def work_ahead(
        self, deadline_s: float, now_s: float, factor: float, base_latency_s: float
    ) -> float:
        """Seconds of work that is due before `deadline_s` and can be on time."""
        count = bisect_left(self._keys, (deadline_s, -1))
        return float(self._kernel.work_ahead(self._live()[0], count, now_s, factor, base_latency_s))

    def work_s(self) -> float:
        """Predicted work of all, uncalibrated, seconds."""
        return float(self._live()[0]["work"].sum())

    def in_order_of_arrival(self) -> list[QueuedRequest]:
        """For comparison: first come, first served."""
        return sorted(self.entries.values(), key=lambda e: (e.work.arrival_s, e.work.id))

    def _live(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int8]]:
        n = len(self._keys)
        return self._rows[:n], self._state[:n]

    def _raw(self) -> npt.NDArray[np.float64]:
        """The rows as plain words, which numpy moves some ten times faster than records."""
        return self._rows.view(np.float64).reshape(len(self._rows), -1)

    def _at(self, index: int) -> QueuedRequest | None:
        return None if index < 0 else self.entries[int(self._rows["id"][index])]

    def _find(self, work: RequestDemand) -> int:
        return bisect_left(self._keys, (work.deadline_s, work.id))
