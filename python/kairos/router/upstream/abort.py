"""Servers are told that a request is gone, until they have let go of it."""

import asyncio
import time
from collections.abc import Mapping

import orjson

from kairos.router.observe.metrics import RouterMetrics
from kairos.router.upstream.http_client import BrokenError, ConnectionPool
from kairos.router.upstream.leg import LegConnection, all_ended

ABORT_TIMEOUT_S = 1.0
"""For one abort to be answered."""
ABORT_LIMIT_S = 5.0
"""For a leg to end after the first abort; then its connection is closed."""
_PAUSE_S = (0.05, 1.0)
_HEAD_START_S = 0.2
"""For the first server to answer an abort before the next is told too."""


class Abort:
    """The abort of a request at its servers, repeated until the legs end.

    A server answers 200 to an abort that precedes the registration of its request, and loses it. A
    server that does not answer delays neither the other abort nor the end.

    Args:
        rids: of the request at its servers, one per sequence.
        headers: what servers want to see with an abort.
    """

    __slots__ = ("_headers", "_metrics", "_pool", "_rids")

    def __init__(
        self,
        pool: ConnectionPool,
        metrics: RouterMetrics,
        rids: tuple[str, ...],
        headers: Mapping[str, str],
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._rids = rids
        self._headers = headers

    async def tell(self, legs: list[LegConnection], reason: str) -> None:
        """Return when all that were live have ended, or after `ABORT_LIMIT_S`."""
        begun_s = time.monotonic()
        limit_s = begun_s + ABORT_LIMIT_S
        pause_s, longest_s = _PAUSE_S
        live = [leg for leg in legs if leg.live]
        for leg in live:
            leg.connection.discard()
        while True:
            await self._tell_all(legs, reason, limit_s)
            await all_ended(live, min(pause_s, limit_s - time.monotonic()))
            for leg in live:
                if not leg.live:
                    waited_s = time.monotonic() - begun_s
                    self._metrics.abort_wait.labels(leg.role.value).observe(waited_s)
            legs = live = [leg for leg in live if leg.live]
            if not live or time.monotonic() >= limit_s:
                return
            pause_s = min(2 * pause_s, longest_s)

    async def _tell_all(self, legs: list[LegConnection], reason: str, limit_s: float) -> None:
        """One abort to each leg, until `limit_s` on the monotonic clock at most."""
        label = self._metrics.reason(reason)
        telling: list[asyncio.Task[None]] = []
        try:
            for leg in legs:
                if telling:
                    await asyncio.wait(telling, timeout=_HEAD_START_S)
                if not leg.complete:
                    self._metrics.aborts.labels(leg.role.value, label).inc()
                    telling.append(asyncio.ensure_future(self._tell(leg)))
            if telling:
                await asyncio.wait(telling, timeout=max(limit_s - time.monotonic(), 0.0))
        finally:
            for task in telling:
                task.cancel()
            await asyncio.gather(*telling, return_exceptions=True)

    async def _tell(self, leg: LegConnection) -> None:
        gate = leg.instance.aborts
        if gate.locked():
            self._metrics.aborts_damped.inc()
        async with gate:
            for rid in self._rids:
                if leg.complete:
                    return
                try:
                    await self._pool.call(
                        leg.instance.endpoint,
                        "POST",
                        "/abort_request",
                        ABORT_TIMEOUT_S,
                        body=orjson.dumps({"rid": rid}),
                        headers=self._headers,
                    )
                except (BrokenError, TimeoutError):
                    return
