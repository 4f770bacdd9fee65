"""Open-loop client: every request leaves when it is due, regardless of earlier requests."""

import asyncio
import gc
import time
from dataclasses import dataclass
from typing import NamedTuple

from kairos.replay.client.exchange import Exchange, named
from kairos.replay.client.job import WorkerJob
from kairos.replay.client.record import RequestOutcome, RequestRecord, make_record
from kairos.replay.client.spool import Spool
from kairos.replay.plan.plan import PlannedRequest

_LEAD_S = 0.1  # between the start and the first arrival
_DIAL_AHEAD_S = 0.05  # connections are open when their request is due
_TIMER_GRAIN_S = 1.5e-3  # timers of the event loop wake up to a millisecond late


@dataclass(slots=True)
class RequestCounts:
    """Live figures for a progress bar.

    Attributes:
        sent: requests that have left.
        done: requests that have ended.
        failed: those of `done` with an outcome other than OK.
    """

    sent: int = 0
    done: int = 0
    failed: int = 0


class _Ended(NamedTuple):
    """A request that has ended, before its record is made."""

    exchange: Exchange
    outcome: RequestOutcome
    reason: str


class ReplayClient:
    """Sends the requests of a job once.

    There is no connection limit and no back-pressure: behind a slow server more requests are in
    flight. Every request ends in exactly one outcome, at the latest when the budget ends.

    Attributes:
        counts: progress, updated during the run.
        start_s: monotonic time from which arrivals count; 0 before the run.
    """

    def __init__(self, job: WorkerJob) -> None:
        """Write all request bodies; this takes about 2 ms a request."""
        self.counts = RequestCounts()
        self.start_s = 0.0
        self._job = job
        self._bodies = Spool(job.body(planned) for planned in job.requests)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._cancellable: set[asyncio.Task[None]] = set()
        self._ended: dict[int, _Ended] = {}
        self._stop_reason: str | None = None

    async def run(self) -> list[RequestRecord]:
        """Send the requests on their schedule; return one record each, in order of arrival."""
        gc.collect()
        gc.disable()  # a collection would pause the sender
        try:
            if self._stop_reason is None:
                await self._send_and_wait()
        finally:
            gc.enable()
        return [self._record(planned) for planned in self._job.requests]

    def stop(self, reason: str) -> None:
        """End the run now; requests in flight or not yet sent are cut for the first `reason`."""
        if self._stop_reason is not None:
            return
        self._stop_reason = reason
        for task in self._cancellable:
            task.cancel()

    async def _send_and_wait(self) -> None:
        sending = self._started(asyncio.create_task(self._send_all()))
        await asyncio.wait([sending])
        if not sending.cancelled():
            sending.result()
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    def _started(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._cancellable.add(task)
        task.add_done_callback(self._cancellable.discard)
        return task

    async def _send_all(self) -> None:
        self.start_s = time.monotonic() + _LEAD_S
        for index, planned in enumerate(self._job.requests):
            if planned.request.arrival_s >= self._job.config.budget_s:
                break
            due_s = self.start_s + planned.request.arrival_s
            await asyncio.sleep(due_s - _DIAL_AHEAD_S - time.monotonic())
            request = self._request(planned, self._bodies[index], due_s)
            task = self._started(asyncio.create_task(request))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    async def _request(self, planned: PlannedRequest, body: memoryview, due_s: float) -> None:
        """Carry out one request and note its outcome."""
        job = self._job
        exchange = Exchange(
            planned, job.rid(planned), due_s, job.target.endpoints(planned.index), job.config.api
        )
        own_end_s, run_end_s = due_s + job.config.timeout_s, self.start_s + job.config.budget_s
        try:
            async with asyncio.timeout(min(own_end_s, run_end_s) - time.monotonic()):
                outcome, reason = await self._exchanged(exchange, body)
        except TimeoutError:
            if own_end_s <= run_end_s:
                outcome = RequestOutcome.TIMEOUT
                reason = f"no end after {job.config.timeout_s:g} s"
            else:
                outcome, reason = RequestOutcome.CUT, f"run budget of {job.config.budget_s:g} s"
        except asyncio.CancelledError:
            if self._stop_reason is None:
                raise
            outcome, reason = RequestOutcome.CUT, self._stop_reason
        except Exception as error:  # one bad request must not end the run
            outcome, reason = RequestOutcome.INTERNAL_ERROR, named(error)
        finally:
            exchange.close()
        self._ended[planned.index] = _Ended(exchange, outcome, reason)
        self.counts.done += 1
        self.counts.failed += outcome is not RequestOutcome.OK

    async def _exchanged(self, exchange: Exchange, body: memoryview) -> tuple[RequestOutcome, str]:
        """Dial, send when due, and wait for the response."""
        failure = None
        try:
            await exchange.dial()
        except OSError as error:
            failure = named(error)
        await _sleep_until(exchange.due_s)
        self.counts.sent += 1
        if failure is None:
            try:
                exchange.send(body, self._job.config.send_slo)
            except OSError as error:
                failure = named(error)
        if failure is not None:
            return RequestOutcome.CONNECTION_ERROR, failure
        return await exchange.answer()

    def _record(self, planned: PlannedRequest) -> RequestRecord:
        """Return the record of a request.

        Records are made after the run: a long response takes milliseconds to split into gaps.
        """
        ended = self._ended.get(planned.index)
        if ended is not None:
            return ended.exchange.record(ended.outcome, ended.reason)
        reason = self._stop_reason or "never sent"
        return make_record(planned, self._job.rid(planned), RequestOutcome.CUT, reason)


async def _sleep_until(due_s: float) -> None:
    """Return within a fraction of a millisecond of `due_s`.

    The last grain of the timer is spent on other events of the loop.
    """
    pause = due_s - time.monotonic() - _TIMER_GRAIN_S
    if pause > 0:
        await asyncio.sleep(pause)
    while time.monotonic() < due_s:
        await asyncio.sleep(0)
