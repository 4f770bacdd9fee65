"""The wait of requests for their pair."""

import asyncio
import time
from collections.abc import Iterable

from kairos.router.edge.errors import RequestError
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.request import Assignment
from kairos.router.request.outcome import Outcome


class DispatchWaiter:
    """Runs the dispatcher after every change and when it is due, and wakes the requests.

    `limit_s` is the longest wait of a request.
    """

    def __init__(self, dispatcher: Dispatcher, limit_s: float) -> None:
        self.dispatcher = dispatcher
        self._limit_s = limit_s
        self._waiters: dict[int, asyncio.Future[Assignment]] = {}
        self._due = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def ids(self) -> Iterable[int]:
        """Ids of the requests that wait."""
        return self._waiters.keys()

    async def pair_for(self, id: int) -> Assignment:
        """Wait for a pair.

        Raises:
            RequestError: 504, no pair in time.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Assignment] = loop.create_future()
        self._waiters[id] = waiter
        limit = loop.call_later(self._limit_s, self._expire, id)
        self.schedule_dispatch()
        try:
            return await waiter
        finally:
            limit.cancel()
            del self._waiters[id]

    def fail(self, id: int, error: RequestError) -> bool:
        """End the wait of a request with an error; return whether it waited."""
        waiter = self._waiters.get(id)
        if waiter is None or waiter.done():
            return False
        waiter.set_exception(error)
        return True

    def _expire(self, id: int) -> None:
        text = f"no pair within {self._limit_s:g} s"
        self.fail(id, RequestError(504, Outcome.EXPIRED, "queue_timeout", text, 1.0))

    def schedule_dispatch(self) -> None:
        """Run the dispatcher in the event loop's next turn."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = time.monotonic()
        for assignment in self.dispatcher.dispatch(now_s):
            waiter = self._waiters.get(assignment.id)
            if waiter is None or waiter.done():
                self.dispatcher.cancelled(assignment.id, now_s)
                self.schedule_dispatch()
            else:
                waiter.set_result(assignment)
        wake_s = self.dispatcher.next_wake_s(now_s)
        if wake_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(
                max(wake_s - time.monotonic(), 0.0), self.schedule_dispatch
            )
