"""Open-loop client: every request leaves when it is due, whatever became of the earlier ones."""

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from kairos.errors import InputError
from kairos.replay.client.api import Api, GenerateApi
from kairos.replay.client.exchange import Exchange, named
from kairos.replay.client.record import RequestOutcome, RequestRecord, make_record
from kairos.replay.client.spool import Spool
from kairos.replay.client.target import Target
from kairos.replay.plan.plan import PlannedRequest
from kairos.replay.plan.prompts import Prompts

_LEAD_S = 0.1  # between the start and the first arrival
_DIAL_AHEAD_S = 0.05  # connections are open when their request is due
_TIMER_GRAIN_S = 1.5e-3  # timers of the event loop wake up to a millisecond late


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Attributes:
    send_slo: tell the servers each request's SLO.
    timeout_s: limit of one request, seconds from when it was due.
    budget_s: limit of the run, seconds from the first arrival; what is left then is cut.
    api: how to ask.
    """

    send_slo: bool = True
    timeout_s: float = 600.0
    budget_s: float = 3600.0
    api: Api = field(default_factory=GenerateApi)

    def __post_init__(self) -> None:
        for name, value in (("timeout-s", self.timeout_s), ("budget-s", self.budget_s)):
            if not 0.0 < value <= 1e6:
                raise InputError(f"--{name}: {value!r} is out of range, allowed are 0 to 1e6")


@dataclass(slots=True)
class Counts:
    """Live figures for a progress bar."""

    sent: int = 0
    done: int = 0
    failed: int = 0


class ReplayClient:
    """Replays a plan once against one target.

    There is no connection limit and no back-pressure: a slow server only lets more requests be in
    flight. Every request ends in exactly one outcome, at the latest when the budget ends.

    Attributes:
        counts: where it stands, while it runs.
        start_s: monotonic time that arrivals count from; 0 before the run.
    """

    def __init__(
        self, target: Target, prompts: Prompts, options: ClientConfig, run_id: str
    ) -> None:
        """`run_id` starts every rid, so that two runs on the same servers do not collide."""
        self.counts = Counts()
        self.start_s = 0.0
        self._target = target
        self._prompts = prompts
        self._options = options
        self._run_id = run_id
        self._bodies: Spool | None = None
        self._sending: asyncio.Task[None] | None = None
        self._in_flight: set[asyncio.Task[None]] = set()
        self._ended: dict[int, tuple[Exchange, RequestOutcome, str]] = {}
        self._stopped: str | None = None

    def prepare(self, requests: Sequence[PlannedRequest]) -> None:
        """Write all bodies. Done by `run` otherwise; takes about 2 ms a request."""
        self._bodies = Spool(self._body(planned) for planned in requests)

    async def run(self, requests: Sequence[PlannedRequest]) -> list[RequestRecord]:
        """Send `requests` on their schedule; one record each, in order of arrival."""
        if self._bodies is None or len(self._bodies) != len(requests):
            self.prepare(requests)
        gc.collect()
        gc.disable()  # a collection would pause the sender, and nothing here makes cycles
        try:
            self._sending = asyncio.create_task(self._send_all(requests))
            await asyncio.wait([self._sending])
            if not self._sending.cancelled():
                self._sending.result()
            while self._in_flight:
                await asyncio.wait(self._in_flight)
        finally:
            gc.enable()
        return [self._record(planned) for planned in requests]

    def stop(self, reason: str) -> None:
        """End the run now: what is in flight or unsent is cut, for `reason`."""
        if self._stopped is not None:
            return
        self._stopped = reason
        if self._sending is not None:
            self._sending.cancel()
        for task in self._in_flight:
            task.cancel()

    async def _send_all(self, requests: Sequence[PlannedRequest]) -> None:
        assert self._bodies is not None
        self.start_s = time.monotonic() + _LEAD_S
        for index, planned in enumerate(requests):
            if planned.request.arrival_s >= self._options.budget_s:
                break
            due = self.start_s + planned.request.arrival_s
            await asyncio.sleep(due - _DIAL_AHEAD_S - time.monotonic())
            task = asyncio.create_task(self._one(planned, self._bodies[index], due))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    async def _one(self, planned: PlannedRequest, body: memoryview, due: float) -> None:
        exchange = Exchange(
            planned, self._rid(planned), due, self._target.legs(planned.index), self._options.api
        )
        own_end, run_end = due + self._options.timeout_s, self.start_s + self._options.budget_s
        try:
            async with asyncio.timeout(min(own_end, run_end) - time.monotonic()):
                outcome, reason = await self._exchanged(exchange, body, due)
        except TimeoutError:
            if own_end <= run_end:
                outcome, reason = (
                    RequestOutcome.TIMEOUT,
                    f"no end after {self._options.timeout_s:g} s",
                )
            else:
                outcome, reason = RequestOutcome.CUT, f"run budget of {self._options.budget_s:g} s"
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            outcome, reason = RequestOutcome.CUT, self._stopped
        except Exception as error:  # one bad request must not end the run
            outcome, reason = RequestOutcome.INTERNAL_ERROR, named(error)
        finally:
            exchange.close()
        self._ended[planned.index] = exchange, outcome, reason
        self.counts.done += 1
        self.counts.failed += outcome is not RequestOutcome.OK

    async def _exchanged(
        self, exchange: Exchange, body: memoryview, due: float
    ) -> tuple[RequestOutcome, str]:
        """Dial, send when due, and await the answer."""
        failure = None
        try:
            await exchange.dial()
        except OSError as error:
            failure = named(error)
        await _sleep_until(due)
        self.counts.sent += 1
        if failure is None:
            try:
                exchange.send(body, self._options.send_slo)
            except OSError as error:
                failure = named(error)
        if failure is not None:
            return RequestOutcome.CONNECTION_ERROR, failure
        return await exchange.answer()

    def _record(self, planned: PlannedRequest) -> RequestRecord:
        """Written after the run: splitting a long answer into gaps takes milliseconds."""
        ended = self._ended.get(planned.index)
        if ended is not None:
            exchange, outcome, reason = ended
            return exchange.record(outcome, reason)
        reason = self._stopped or "never sent"
        return make_record(planned, self._rid(planned), RequestOutcome.CUT, reason=reason)

    def _body(self, planned: PlannedRequest) -> bytes:
        ids = self._prompts.token_ids(planned.request, planned.index)
        prompt = orjson.dumps(ids, option=orjson.OPT_SERIALIZE_NUMPY)
        legs = self._target.legs(planned.index)
        return self._options.api.body(
            planned, self._rid(planned), prompt, legs, self._options.send_slo
        )

    def _rid(self, planned: PlannedRequest) -> str:
        return f"{self._run_id}-{planned.index:07d}"


async def _sleep_until(due: float) -> None:
    """Return within a fraction of a millisecond of `due`: the last grain of the timer is spent on
    other events of the loop."""
    pause = due - time.monotonic() - _TIMER_GRAIN_S
    if pause > 0:
        await asyncio.sleep(pause)
    while time.monotonic() < due:
        await asyncio.sleep(0)
