"""One attempt: a request at a prefill and a decode worker at once, until both are done with it."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kairos.router.config.settings import Timeouts
from kairos.router.observe.metrics import RouterMetrics
from kairos.router.upstream.abort import Abort
from kairos.router.upstream.engine_answer import problem_of
from kairos.router.upstream.http_client import BrokenError, ConnectionPool, head
from kairos.router.upstream.leg import LegConnection, LegError, all_ended
from kairos.router.upstream.rooms import BootstrapRooms, Transfer
from kairos.router.workers.endpoint import Role
from kairos.router.workers.worker import Worker

PREFILL_GRACE_S = 2.0
"""For the prefill server to end its answer after the decode server ended its own."""
_MAX_PREFILL_BYTES = 256 << 20
_LARGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class AttemptDeps:
    """What all attempts share."""

    pool: ConnectionPool
    rooms: BootstrapRooms
    timeouts: Timeouts
    metrics: RouterMetrics
    abort_headers: Callable[[], Mapping[str, str]]


class Attempt:
    """The legs are watched together: the first failure of either is the pair's.

    Args:
        rids: request ids at the servers, one per sequence.
        on_prefill: called when the prefill server has answered.
        stream: the answer comes token by token; else nothing comes before its last one.

    Attributes:
        transfer: what both servers know it by; its rooms are in use until it has ended.
        digest: of the request's body; None for a probe.
        broke: the role of the server whose connection broke after the answer had begun.
        ending: runs `end`, once it has begun; kept by the owner.
    """

    __slots__ = (
        "_abort",
        "_closed",
        "_failure",
        "_first",
        "_last_s",
        "_legs",
        "_limit_s",
        "_on_prefill",
        "_parts",
        "_path",
        "_prefilled",
        "_stream",
        "_timer",
        "broke",
        "decode",
        "digest",
        "ending",
        "prefill",
        "prefill_body",
        "transfer",
    )

    def __init__(
        self,
        parts: AttemptDeps,
        prefill: Worker,
        decode: Worker,
        rids: tuple[str, ...],
        on_prefill: Callable[[], None] | None = None,
        stream: bool = False,
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self.prefill_body = b""
        self.digest: int | None = None
        self.broke: Role | None = None
        self.ending: asyncio.Task[None] | None = None
        self._parts = parts
        self.transfer = Transfer(rids, parts.rooms.take(len(rids)))
        self._on_prefill = on_prefill
        self._abort = Abort(parts.pool, parts.metrics, rids, parts.abort_headers())
        self._stream = stream
        self._path = ""
        self._legs: dict[Role, LegConnection] = {}
        self._failure: LegError | None = None
        self._prefilled = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = 0.0
        self._limit_s = parts.timeouts.first_byte_timeout_s
        self._first = True
        self._closed = False
        for instance in (prefill, decode):
            instance.attempts.add(self)

    async def open(self, path: str, body: bytes, headers: Mapping[Role, Mapping[str, str]]) -> None:
        """Send the request to both servers, and wait for the status of the decode server.

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
            self._legs[role] = LegConnection(role, instance, connection, pool)
        if self._failure is not None:
            raise self._failure
        decode, prefill = self._legs[Role.DECODE], self._legs[Role.PREFILL]
        self._last_s = time.monotonic()
        self._watch()
        for leg, on_end, most in (
            (decode, None, 0),
            (prefill, self._prefill_ended, _MAX_PREFILL_BYTES),
        ):
            if len(body) > _LARGE_BYTES:
                await asyncio.sleep(0)  # sending may hold the event loop for milliseconds
            request = head(leg.instance.endpoint, "POST", path, len(body), headers[leg.role])
            leg.connection.begin(request, body, on_end, most)
        connection = decode.connection
        while not connection.status:
            self._check(decode)
            await connection.wait()
        self._check(decode, started=True)

    @property
    def status(self) -> int:
        """Of the decode server's answer."""
        return self._legs[Role.DECODE].connection.status

    @property
    def content_type(self) -> str:
        """Of the decode server's answer."""
        headers = self._legs[Role.DECODE].connection.headers
        return headers.get("content-type", "application/json")

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

    def worker(self, role: Role) -> Worker:
        """The worker of one leg."""
        return self.prefill if role is Role.PREFILL else self.decode

    def silent_since_s(self, worker: Worker) -> float | None:
        """Return when a running leg at `worker` last received bytes, monotonic seconds.

        None where no leg runs there any more.
        """
        role = Role.PREFILL if worker is self.prefill else Role.DECODE
        leg = self._legs.get(role)
        return None if leg is None or not leg.live else leg.connection.heard_s

    def streaming_s(self) -> float | None:
        """When the decode worker last sent something of its answer; None before its first byte."""
        leg = self._legs.get(Role.DECODE)
        return None if leg is None or self._first else leg.connection.heard_s

    def fail(self, error: LegError) -> None:
        """End the attempt; the reader gets `error`. The first failure counts."""
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

        The decode server is told first: it tells the prefill server, which does not tell it. What
        does not end is cut off. Behind a connection that broke the server may run on: it is told
        once.
        """
        self._closed = True
        self._stop_timer()
        try:
            decode, prefill = (self._legs.get(role) for role in (Role.DECODE, Role.PREFILL))
            if decode is not None and decode.answered and prefill is not None and prefill.live:
                await all_ended([prefill], PREFILL_GRACE_S)
            told = [leg for leg in (decode, prefill) if leg is not None and not leg.complete]
            if told:
                await self._abort.tell(told, reason)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        for leg in self._legs.values():
            if leg.live:
                leg.connection.close()
            leg.release()
        for instance in (self.prefill, self.decode):
            instance.attempts.discard(self)
        self._parts.rooms.release(self.transfer.rooms)
        self._on_prefill = None  # it knows the request, which knows this pair

    def _check(self, decode: LegConnection, started: bool = False) -> None:
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
        self.prefill.attempts.discard(self)  # whatever becomes of that worker
        self.prefill_body = body
        self._prefilled = True
        self._legs[Role.DECODE].connection.wake()
        if not self._closed and self._on_prefill is not None:
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
