"""Events of a simulation in order of time."""

import heapq
import math
from typing import Generic, TypeVar

E = TypeVar("E")


class EventQueue(Generic[E]):
    """Events by time; events of one instant leave in the order in which they were added."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, E]] = []
        self._added = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    @property
    def next_s(self) -> float:
        """Time of the earliest event, seconds; infinite without one."""
        return self._heap[0][0] if self._heap else math.inf

    @property
    def next_event(self) -> E | None:
        """The earliest event, which stays in the queue."""
        return self._heap[0][2] if self._heap else None

    def add(self, time_s: float, event: E) -> None:
        """Let `event` happen at `time_s`, seconds of simulated time."""
        self._added += 1
        heapq.heappush(self._heap, (time_s, self._added, event))

    def pop(self) -> tuple[float, E]:
        """Take out the earliest event and return its time and the event."""
        time_s, _, event = heapq.heappop(self._heap)
        return time_s, event
