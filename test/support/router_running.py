"""A router of this process in front of fake servers, with short limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from msgspec.structs import replace

from kairos.router.config.settings import (
    Limits,
    Observability,
    Overload,
    RouterConfig,
    Timeouts,
    Workers,
)
from kairos.router.edge.process import listen, make_server
from kairos.router.observe.access_record import AccessRecord
from kairos.router.router import Router
from kairos.router.workers.endpoint import WorkerEndpoint
from support.router_engine import Fakes, until

TIMEOUTS = Timeouts(
    first_byte_timeout_s=5.0,
    stream_idle_timeout_s=5.0,
    queue_timeout_s=5.0,
    request_timeout_s=20.0,
    write_timeout_s=2.0,
    connect_timeout_s=1.0,
    drain_timeout_s=5.0,
)


@dataclass
class Running:
    """Attributes:
    ends: every request that ended, in order.
    """

    router: Router
    url: str
    session: aiohttp.ClientSession
    ends: list[AccessRecord]

    async def ready(self, prefill: int = 1, decode: int = 1) -> None:
        """Return once so many servers of each role get requests."""
        await until(lambda: self._states("prefill") >= prefill and self._states("decode") >= decode)

    async def quiet(self) -> None:
        """Return once nothing is in flight; fails if that does not come to pass."""
        await until(self._idle, "an idle router")

    def _idle(self) -> bool:
        router = self.router
        if router.handler.active or len(router.rooms):
            return False
        # BootstrapRooms are free a moment before the dispatcher hears of it.
        snapshot = router.dispatcher.snapshot(0.0)
        queue = snapshot["queue"]
        held = snapshot["dispatched"] or queue["requests"] or queue["bytes"]
        return not held and not any(i.attempts for i in router.registry.workers.values())

    def post(self, body: dict[str, Any], path: str = "/generate", **more: Any) -> Any:
        return self.session.post(self.url + path, json=body, **more)

    def _states(self, role: str) -> int:
        instances = self.router.registry.workers.values()
        return sum(i.role.value == role and i.state.value == "ready" for i in instances)


def config_for(cluster: Fakes, health_timeout_s: float = 1.0, **sections: Any) -> RouterConfig:
    """A configuration in front of these servers."""
    workers = Workers(
        prefill=tuple(WorkerEndpoint("prefill", e.url, e.bootstrap_port) for e in cluster.prefill),
        decode=tuple(WorkerEndpoint("decode", e.url) for e in cluster.decode),
        health_interval_s=0.1,
        health_timeout_s=health_timeout_s,
        breaker_open_s=0.2,
    )
    given = {
        "workers": workers,
        "timeouts": TIMEOUTS,
        "observability": Observability(access_log="off"),
        "limits": Limits(),
        "overload": Overload(),
        **sections,
    }
    return RouterConfig(**given)


@asynccontextmanager
async def running(config: RouterConfig, ready: bool = True) -> AsyncIterator[Running]:
    """A router that serves on a port of its own."""
    router = Router(config)
    ends: list[AccessRecord] = []
    count = router.metrics.ended

    def ended(end: AccessRecord) -> None:
        ends.append(end)
        count(end)

    # The record of every end is read here, so a method of one object is replaced.
    router.metrics.ended = ended  # type: ignore[method-assign]
    server = make_server(router)
    await router.start()
    listener = listen(router, server, 0)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        up = Running(router, f"http://127.0.0.1:{listener.port}", session, ends)
        try:
            if ready:
                workers = config.workers
                await up.ready(len(workers.prefill), len(workers.decode))
            yield up
        finally:
            listener.close()
            router.config = replace(config, timeouts=replace(config.timeouts, drain_timeout_s=0.01))
            await router.stop()
            await server.shutdown(0.1)
            router.close()
