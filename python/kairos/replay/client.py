"""Open-loop client: every request leaves when it is due, whatever became of the earlier ones."""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import aiohttp
import orjson

from kairos.errors import InputError
from kairos.replay.exchange import Exchange, tracing
from kairos.replay.plan import PlannedRequest
from kairos.replay.prompts import Prompts
from kairos.replay.record import Outcome, Record, make_record
from kairos.replay.target import Target

_PREPARED = 32  # prompts made ahead, so that none is made when it is due
_LEAD_S = 0.02  # between the start and the first arrival
_TIMER_GRAIN_S = 1.2e-3  # timers of the event loop wake up to a millisecond late


@dataclass(frozen=True, slots=True)
class Options:
    """Attributes:
    send_slo: put the SLO into custom_params, for servers that schedule by it.
    timeout_s: limit of one request, seconds from when it was due.
    budget_s: limit of the run, seconds from the first arrival; what is left then is cut.
    """

    send_slo: bool = True
    timeout_s: float = 600.0
    budget_s: float = 3600.0

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


class Client:
    """Replays a plan once against one target.

    There is no connection limit and no back-pressure: a slow server only lets more requests be in
    flight. Every request ends in exactly one outcome, at the latest when the budget ends.

    Attributes:
        counts: where it stands, while it runs.
    """

    def __init__(self, target: Target, prompts: Prompts, options: Options, run_id: str) -> None:
        """`run_id` starts every rid, so that two runs on the same servers do not collide."""
        self.counts = Counts()
        self._target = target
        self._prompts = prompts
        self._options = options
        self._run_id = run_id
        self._start = 0.0
        self._sending: asyncio.Task[None] | None = None
        self._in_flight: set[asyncio.Task[None]] = set()
        self._records: dict[int, Record] = {}
        self._stopped: str | None = None

    async def run(self, requests: Sequence[PlannedRequest]) -> list[Record]:
        """Send `requests` on their schedule; one record each, in order of arrival."""
        # Dialling afresh costs about a millisecond; servers close idle connections after 5 s,
        # and a request sent on such a connection is lost.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        gc.collect()
        gc.freeze()  # the plan is large and lives on: scanning it would pause the sender
        try:
            async with aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),
                trace_configs=[tracing()],
                auto_decompress=False,
            ) as session:
                self._sending = asyncio.create_task(self._send_all(requests, session))
                await asyncio.wait([self._sending])
                if not self._sending.cancelled():
                    self._sending.result()
                while self._in_flight:
                    await asyncio.wait(self._in_flight)
        finally:
            gc.unfreeze()
        return [
            self._records.get(planned.index)
            or make_record(
                planned, self._rid(planned), Outcome.CUT, reason=self._stopped or "never sent"
            )
            for planned in requests
        ]

    def stop(self, reason: str) -> None:
        """End the run now: what is in flight or unsent is cut, for `reason`."""
        if self._stopped is not None:
            return
        self._stopped = reason
        if self._sending is not None:
            self._sending.cancel()
        for task in self._in_flight:
            task.cancel()

    async def _send_all(
        self, requests: Sequence[PlannedRequest], session: aiohttp.ClientSession
    ) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="kairos-prompts") as maker:
            ahead = iter(requests[_PREPARED:])
            prepared: deque[Future[bytes]] = deque(
                maker.submit(self._prompt, planned) for planned in requests[:_PREPARED]
            )
            wait(prepared)
            self._start = time.monotonic() + _LEAD_S
            for planned in requests:
                prompt = await asyncio.wrap_future(prepared.popleft())
                following = next(ahead, None)
                if following is not None:
                    prepared.append(maker.submit(self._prompt, following))
                if planned.request.arrival_s >= self._options.budget_s:
                    break
                due = self._start + planned.request.arrival_s
                await _sleep_until(due)
                task = asyncio.create_task(self._one(planned, prompt, due, session))
                self._in_flight.add(task)
                task.add_done_callback(self._in_flight.discard)

    async def _one(
        self, planned: PlannedRequest, prompt: bytes, due: float, session: aiohttp.ClientSession
    ) -> None:
        exchange = Exchange(planned, self._rid(planned), due)
        self.counts.sent += 1
        own_end, run_end = due + self._options.timeout_s, self._start + self._options.budget_s
        try:
            async with asyncio.timeout(min(own_end, run_end) - time.monotonic()):
                outcome, reason = await exchange.run(
                    session,
                    self._target.legs(planned.index),
                    prompt,
                    send_slo=self._options.send_slo,
                )
        except TimeoutError:
            if own_end <= run_end:
                outcome, reason = Outcome.TIMEOUT, f"no end after {self._options.timeout_s:g} s"
            else:
                outcome, reason = Outcome.CUT, f"run budget of {self._options.budget_s:g} s"
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            outcome, reason = Outcome.CUT, self._stopped
        self._records[planned.index] = exchange.record(outcome, reason)
        self.counts.done += 1
        self.counts.failed += outcome is not Outcome.OK

    def _prompt(self, planned: PlannedRequest) -> bytes:
        ids = self._prompts.token_ids(planned.request, planned.index)
        return orjson.dumps(ids, option=orjson.OPT_SERIALIZE_NUMPY)

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
