"""One attempt: a request at a prefill and a decode server at once, until both are done with it."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from kairos.router.config import Timeouts
from kairos.router.endpoint import Role
from kairos.router.instance import Instance
from kairos.router.intake import RESPONSES
from kairos.router.leg import Leg, LegError
from kairos.router.metrics import RouterMetrics
from kairos.router.rooms import Rooms
from kairos.router.wire import BrokenError, Pool, head

ABORT_TIMEOUT_S = 1.0
"""For one abort to be answered."""
ABORT_LIMIT_S = 5.0
"""For a leg to end after the first abort; then its connection is closed."""
PREFILL_GRACE_S = 2.0
"""For the prefill server to end its answer after the decode server ended its own."""
_ABORT_PAUSE_S = (0.05, 1.0)
_HEAD_START_S = 0.2
"""For the decode server to answer an abort before the prefill server is told too."""
_MOST_PREFILL_BYTES = 256 << 20

# Quotes inside of JSON strings are escaped, so generated text cannot look like these.
_ABORTED = (b'"type":"abort"', b'"finish_reason":"abort"')
_ERROR_EVENT = re.compile(rb'data: ?\{"error": ?(?!null)')
# At the beginning of a line, where nothing can stand that a client or a model wrote.
_RESPONSE_END = re.compile(rb"^event: response\.(completed|incomplete|failed)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PairParts:
    """What attempts share."""

    pool: Pool
    rooms: Rooms
    timeouts: Timeouts
    metrics: RouterMetrics


class Pair:
    """The legs are watched together: the first failure of either is the pair's.

    Args:
        on_prefill: called when the prefill server has answered.
        stream: the answer comes token by token; else nothing comes before its last one.

    Attributes:
        ending: runs `end`, once it has begun; kept by the owner.
    """

    def __init__(
        self,
        parts: PairParts,
        prefill: Instance,
        decode: Instance,
        rids: tuple[str, ...],
        rooms: tuple[int, ...],
        on_prefill: Callable[[], None],
        abort_headers: Mapping[str, str],
        stream: bool = False,
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self.rids = rids
        self.prefill_body = b""
        self.ending: asyncio.Task[None] | None = None
        self._parts = parts
        self._rooms = rooms
        self._on_prefill = on_prefill
        self._abort_headers = abort_headers
        self._stream = stream
        self._path = ""
        self._legs: dict[Role, Leg] = {}
        self._failure: LegError | None = None
        self._prefilled = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = 0.0
        self._limit_s = parts.timeouts.first_byte_timeout_s
        self._first = True
        self._closed = False
        for instance in (prefill, decode):
            instance.pairs.add(self)

    async def open(self, path: str, body: bytes, headers: Mapping[Role, Mapping[str, str]]) -> int:
        """Send the request to both; the decode server's status.

        Nothing is sent before there are two connections: a server that cannot be reached leaves
        nothing behind at the other.

        Raises:
            LegError: an attempt that failed, of whichever leg.
        """
        self._path = path
        pool = self._parts.pool
        for role, instance in ((Role.DECODE, self.decode), (Role.PREFILL, self.prefill)):
            try:
                connection = await pool.take(instance.endpoint)
            except BrokenError as error:
                raise LegError(role, error.reason, f"the {role.value} server: {error}") from None
            self._legs[role] = Leg(role, instance, connection, pool)
        if self._failure is not None:
            raise self._failure
        decode, prefill = self._legs[Role.DECODE], self._legs[Role.PREFILL]
        self._last_s = time.monotonic()
        self._watch()
        for leg, on_end, most in (
            (decode, _nothing, 0),
            (prefill, self._prefill_ended, _MOST_PREFILL_BYTES),
        ):
            request = head(leg.instance.endpoint, "POST", path, len(body), headers[leg.role])
            leg.connection.begin(request + body, on_end, most)
        connection = decode.connection
        while not connection.status:
            self._check(decode)
            await connection.wait()
        self._check(decode, started=True)
        return connection.status

    @property
    def content_type(self) -> str:
        """Of the decode server's answer."""
        for name, value in self._legs[Role.DECODE].connection.headers:
            if name == b"content-type":
                return value.decode("latin-1")
        return "application/json"

    async def read(self) -> bytes:
        """The next bytes of the decode server's answer; empty at its end.

        Raises:
            LegError: the attempt failed.
        """
        leg = self._legs[Role.DECODE]
        connection = leg.connection
        while True:
            if self._failure is not None and self._failure.ours and not connection.ended:
                # A server that never pauses must not put the end off.
                raise self._failure
            if connection.arrived:
                self._last_s = time.monotonic()
                if self._first:
                    self._first = False
                    self._limit_s = self._parts.timeouts.stream_idle_timeout_s
                return connection.take()
            self._check(leg, started=True)
            if connection.ended:
                return b""
            await connection.wait()

    async def read_all(self, most: int) -> bytes:
        """The whole answer.

        Raises:
            LegError: the attempt failed.
        """
        pieces = []
        size = 0
        while piece := await self.read():
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise LegError(Role.DECODE, "answer_too_long", "the answer is too long")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def prefilled(self) -> bytes:
        """The prefill server's whole answer.

        Raises:
            LegError: the attempt failed.
        """
        leg = self._legs[Role.DECODE]
        while not self._prefilled:
            self._check(leg)
            await leg.connection.wait()
        return self.prefill_body

    def fail(self, error: LegError) -> None:
        """End the attempt; whoever reads gets `error`. The first failure counts."""
        if self._failure is None and not self._closed:
            self._failure = error
            leg = self._legs.get(Role.DECODE)
            if leg is not None:
                leg.connection.wake()

    def settled(self) -> bool:
        """End it if both servers are done with it already; whether they were."""
        if self.ending is not None or not all(leg.complete for leg in self._legs.values()):
            return False
        self._closed = True
        self._stop_timer()
        self._let_go()
        return True

    async def end(self, reason: str) -> None:
        """Return when both servers are done with it, as far as can be known; bounded.

        The decode server is told first: it tells the prefill server, which does not tell it. An
        abort that comes before its request is registered is lost although it is answered with
        200, so it is repeated until the leg itself ends. What does not end is cut off. A decode
        server that does not answer keeps neither the other abort nor the end waiting. Behind a
        connection that broke the server may run on: it is told once.
        """
        self._closed = True
        self._stop_timer()
        try:
            decode, prefill = (self._legs.get(role) for role in (Role.DECODE, Role.PREFILL))
            if decode is not None and decode.answered and prefill is not None and prefill.live:
                await _ended([prefill], PREFILL_GRACE_S)
            told = [leg for leg in (decode, prefill) if leg is not None and not leg.complete]
            if told:
                await self._abort(told, reason)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        for leg in self._legs.values():
            if leg.live:
                leg.connection.close()
            leg.release()
        for instance in (self.prefill, self.decode):
            instance.pairs.discard(self)
        self._parts.rooms.release(self._rooms)
        self._on_prefill = _nothing  # it knows the request, which knows this pair

    async def _abort(self, legs: list[Leg], reason: str) -> None:
        metrics = self._parts.metrics
        begun_s = time.monotonic()
        limit_s = begun_s + ABORT_LIMIT_S
        pause_s, longest_s = _ABORT_PAUSE_S
        live = [leg for leg in legs if leg.live]
        for leg in live:
            leg.connection.discard()
        while True:
            await self._tell_all(legs, reason, limit_s)
            await _ended(live, min(pause_s, limit_s - time.monotonic()))
            for leg in live:
                if not leg.live:
                    waited_s = time.monotonic() - begun_s
                    metrics.abort_wait.labels(leg.role.value).observe(waited_s)
            legs = live = [leg for leg in live if leg.live]
            if not live or time.monotonic() >= limit_s:
                return
            pause_s = min(2 * pause_s, longest_s)

    async def _tell_all(self, legs: list[Leg], reason: str, limit_s: float) -> None:
        """One abort to each leg, until `limit_s` on the monotonic clock at most."""
        metrics = self._parts.metrics
        telling: list[asyncio.Task[None]] = []
        try:
            for leg in legs:
                if telling:
                    await asyncio.wait(telling, timeout=_HEAD_START_S)
                if not leg.complete:
                    metrics.aborts.labels(leg.role.value, metrics.reason(reason)).inc()
                    telling.append(asyncio.ensure_future(self._tell(leg)))
            if telling:
                await asyncio.wait(telling, timeout=max(limit_s - time.monotonic(), 0.0))
        finally:
            for task in telling:
                task.cancel()
            await asyncio.gather(*telling, return_exceptions=True)

    async def _tell(self, leg: Leg) -> None:
        gate = leg.instance.aborts
        if gate.locked():
            self._parts.metrics.aborts_damped.inc()
        async with gate:
            for rid in self.rids:
                if leg.complete:
                    return
                try:
                    await self._parts.pool.call(
                        leg.instance.endpoint,
                        "POST",
                        "/abort_request",
                        ABORT_TIMEOUT_S,
                        body=orjson.dumps({"rid": rid}),
                        headers=self._abort_headers,
                    )
                except (BrokenError, TimeoutError):
                    return

    def _check(self, decode: Leg, started: bool = False) -> None:
        """Raise what ended the attempt, if anything did."""
        connection = decode.connection
        whole = started and connection.ended and connection.broken is None
        if self._failure is not None and not whole:
            raise self._failure
        error = decode.broken()
        if error is not None and not connection.arrived:
            raise error

    def _prefill_ended(self) -> None:
        leg = self._legs[Role.PREFILL]
        body = leg.connection.take()
        error = leg.broken() or problem_of(Role.PREFILL, leg.connection.status, body, self._path)
        if error is not None:
            self.fail(error)
            return
        leg.release()  # decode may take long: the connection is for others
        self.prefill_body = body
        self._prefilled = True
        self._legs[Role.DECODE].connection.wake()
        if not self._closed:
            self._on_prefill()

    def _watch(self) -> None:
        """Look whether the pair has been silent for too long; again when it could be."""
        now_s = time.monotonic()
        if self._legs[Role.DECODE].connection.arrived:
            self._last_s = now_s  # it is the client that pauses
        idle_s = self._parts.timeouts.stream_idle_timeout_s
        due_s = self._last_s + self._limit_s
        if self._first and self._prefilled and not self._stream:
            # The first byte comes with the last token; how long that may take, the limit of the
            # whole request says.
            due_s = now_s + idle_s
        if now_s < due_s:
            loop = asyncio.get_running_loop()
            # A limit may get shorter in between.
            self._timer = loop.call_later(min(due_s - now_s, idle_s) + 1e-3, self._watch)
            return
        # A prefill server waits for the decode server to make room: either may hang.
        shared = self._first and not self._prefilled
        role = Role.PREFILL if shared else Role.DECODE
        reason = "first_byte_timeout" if self._first else "stream_idle_timeout"
        text = f"the servers were silent for {self._limit_s:g} s"
        self.fail(LegError(role, reason, text, shared=shared))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def problem_of(role: Role, status: int, data: bytes, path: str) -> LegError | None:
    """What is wrong with an answer: its status, or an error or abort told in a 200.

    Args:
        data: the body, or the first events of a stream.
        path: the endpoint's.
    """
    if status != 200:
        return LegError(
            role, f"status_{status}", f"the {role.value} server answered {status}", status, data
        )
    if found := _ERROR_EVENT.match(data):
        document, _, _ = data[found.start() :].removeprefix(b"data:").partition(b"\n\n")
        try:
            error = orjson.loads(document)["error"]
            code = int(error.get("code") or 500)
        except (ValueError, KeyError, TypeError, AttributeError):
            document, code = b"", 500
        code = code if 400 <= code <= 599 else 500
        text = f"the {role.value} server reported an error"
        return LegError(role, f"error_{code}", text, code, document.strip())
    if is_aborted(data, path):
        return LegError(role, "aborted", f"the {role.value} server aborted the request")
    return None


def is_aborted(data: bytes, path: str) -> bool:
    """Whether an answer says that the server gave the request up."""
    if path == RESPONSES:
        return _is_failed(data)
    return any(mark in data for mark in _ABORTED)


def error_event(events: bytes) -> bytes:
    """The first error among events, and what follows it; empty if there is none."""
    found = _ERROR_EVENT.search(events) if b'"error":' in events else None
    return b"" if found is None else events[found.start() :]


def response_end(events: bytes) -> bytes:
    """How a stream of /v1/responses says that it ended: completed, incomplete (cut at its length,
    which is a proper end too) or failed; empty where it did not end."""
    ends = _RESPONSE_END.findall(events)
    return ends[-1] if ends else b""


def _is_failed(data: bytes) -> bool:
    """The same for /v1/responses, whose answers repeat what the client wrote: bytes anywhere in
    them prove nothing."""
    if data[:1] != b"{":
        return response_end(data) == b"failed"
    if b'"failed"' not in data:
        return False
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and document.get("status") == "failed"


async def _ended(legs: list[Leg], limit_s: float) -> None:
    """Return when all have ended, or after `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while any(leg.live for leg in legs):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return
        live = next(leg for leg in legs if leg.live)
        try:
            async with asyncio.timeout(left_s):
                while live.live:
                    await live.connection.wait()
        except TimeoutError:
            return


def _nothing() -> None:
    pass
