"""One leg: the exchange of one attempt with one server, and what went wrong with it."""

import asyncio
import time

from kairos.router.upstream.http_client import NO_FILES, ConnectionPool, EngineConnection
from kairos.router.workers.endpoint import Role
from kairos.router.workers.worker import Worker

_NO_ENDPOINT = b'{"detail":"Not Found"}'
"""What FastAPI answers where there is no endpoint. A 404 about a model has another body."""


class LegError(Exception):
    """An attempt that failed.

    Attributes:
        role: the leg that failed first.
        reason: one or few words with underscores, for metrics and the client's programs.
        status: the server's own, 0 where it did not answer.
        body: the server's answer, to be passed on; empty where there is none.
        shared: the fault may as well be the other server's.
    """

    def __init__(
        self,
        role: Role,
        reason: str,
        message: str,
        status: int = 0,
        body: bytes = b"",
        shared: bool = False,
    ) -> None:
        super().__init__(message)
        self.role = role
        self.reason = reason
        self.status = status
        self.body = body
        self.shared = shared

    @property
    def ours(self) -> bool:
        """The router ended the attempt or could not make it; neither server is at fault."""
        return self.reason in ("shut_down", "request_timeout", NO_FILES, "server_gone")

    @property
    def moved(self) -> bool:
        """The worker left before anything was sent to it: this was no attempt."""
        return self.reason == "server_gone"

    @property
    def late(self) -> bool:
        """A limit of time ended the attempt; another one would take as long."""
        return self.reason in ("first_byte_timeout", "stream_idle_timeout", "request_timeout")

    @property
    def refused(self) -> bool:
        """The server found fault with the request; another one would too."""
        return 400 <= self.status < 500 and not self.busy and not self.unfit

    @property
    def busy(self) -> bool:
        """The server takes nothing more now; another one may."""
        return self.status in (429, 503)

    @property
    def unfit(self) -> bool:
        """The server wants another key, or has no such endpoint: it is none of this router's."""
        return self.status == 401 or (self.status == 404 and self.body == _NO_ENDPOINT)

    @property
    def broken(self) -> bool:
        """The connection broke after the request was sent: the server may have died."""
        return self.reason in ("connection_reset", "connection_closed", "connection_lost")


class LegConnection:
    """A connection in the hands of one attempt, given back to the pool when it has ended.

    Attributes:
        connection: others may use it once it was released.
    """

    __slots__ = ("_held", "_pool", "_status", "connection", "instance", "role")

    def __init__(
        self, role: Role, instance: Worker, connection: EngineConnection, pool: ConnectionPool
    ) -> None:
        self.role = role
        self.instance = instance
        self.connection = connection
        self._pool = pool
        self._held = True
        self._status = 0  # of a complete answer, after the release

    @property
    def live(self) -> bool:
        """The server may still be at work for it."""
        return not self._status and not self.connection.ended

    @property
    def complete(self) -> bool:
        """The server has answered to the end."""
        if self._status:
            return True
        return self.connection.ended and self.connection.broken is None

    @property
    def answered(self) -> bool:
        """It has, and with what was asked for."""
        return self.complete and (self._status or self.connection.status) == 200

    def broken(self) -> LegError | None:
        """Why the exchange came to no end; None if it did, or still may."""
        problem = self.connection.broken
        if self._status or not self.connection.ended or problem is None:
            return None
        reason = problem.reason
        return LegError(self.role, reason, f"the {self.role.value} server: {problem}")

    def release(self) -> None:
        """Let go of the connection: kept if the exchange is complete, else closed."""
        if self._held:
            self._held = False
            self._status = self.connection.status if self.complete else 0
            self._pool.give(self.instance.endpoint, self.connection)


async def all_ended(legs: list[LegConnection], limit_s: float) -> None:
    """Return when no server is at work for any of them, or after `limit_s`."""
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
