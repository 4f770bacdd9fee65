"""All parts of one router process, tied together."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.policy.admission import AdmissionDecision
from kairos.router.background import Background
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.keys import Keyring
from kairos.router.edge.limits import TenantGate
from kairos.router.edge.tls import client_context
from kairos.router.observe.access_log import AccessLog
from kairos.router.observe.metrics import RouterMetrics
from kairos.router.queue.dispatch_waiter import DispatchWaiter
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.params import DispatchParams
from kairos.router.request.body_memory import BodyMemory
from kairos.router.request.handler import HandlerDeps, RequestHandler
from kairos.router.request.token_counter import TokenCounter
from kairos.router.upstream.attempt import AttemptDeps
from kairos.router.upstream.http_client import ConnectionPool
from kairos.router.upstream.rooms import BootstrapRooms
from kairos.router.workers.discovery import WorkerDiscovery
from kairos.router.workers.health import Health
from kairos.router.workers.registry import WorkerRegistry

_SCRAPE_SLACK = 1.5
_MAX_LINGER_S = 60.0
S = TypeVar("S")
T = TypeVar("T")
_END_LIMIT_S = 15.0  # for what ends in the background when the router stops


class Router:
    """Builds the parts, starts and stops them.

    Attributes:
        leaving: load balancers are to send nothing new.

    Raises:
        InputError: a file that the configuration names cannot be used.
    """

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.metrics = RouterMetrics()
        self.keyring = Keyring(config)
        self.log = AccessLog(config.observability.access_log, self.metrics.log_dropped.inc)
        self.counter = _named("--tokenizer-path", TokenCounter, config.scheduling.tokenizer_path)
        self.dispatcher = Dispatcher(self._params())
        self.waiting = DispatchWaiter(self.dispatcher, config.timeouts.queue_timeout_s)
        self.rooms = BootstrapRooms()
        self.pool = ConnectionPool(
            client_context(config.security), config.timeouts.connect_timeout_s
        )
        self.attempts = AttemptDeps(
            self.pool, self.rooms, config.timeouts, self.metrics, self.keyring.admin_headers
        )
        headers = self.keyring.engine_headers
        self.registry = WorkerRegistry(
            config.workers,
            self.waiting,
            self.pool,
            self.metrics,
            _named("--profile", load_profile, config.scheduling.profile),
            headers,
        )
        self.health = Health(config.workers, self.registry, self.attempts, headers)
        self.discovery = WorkerDiscovery(config, self.registry.discovered)
        self.gate = TenantGate()
        self.bodies = BodyMemory(config.limits.max_reading_bytes, config.overload.overload_status)
        self.handler = RequestHandler(
            HandlerDeps(
                config=config,
                metrics=self.metrics,
                log=self.log,
                keyring=self.keyring,
                gate=self.gate,
                memory=self.bodies,
                counter=self.counter,
                dispatcher=self.dispatcher,
                waiter=self.waiting,
                registry=self.registry,
                health=self.health,
                attempts=self.attempts,
                engine_headers=headers,
            )
        )
        self.leaving = False
        self._scraped_s = 0.0
        self._scrape_every_s = 0.0
        self._background = Background()

    async def start(self) -> None:
        """Begin to look after the workers."""
        self.health.start()
        self.discovery.start()
        self._background.start(self.discovery.run(), "discovery")
        self._background.start(self._measure_lag(), "loop lag")

    async def leave(self) -> None:
        """Say so in /ready, and serve on until load balancers have read it."""
        self.leaving = True
        await asyncio.sleep(self.config.timeouts.drain_delay_s)

    async def drain(self) -> None:
        """Let running requests end, for the drain time at most, and end the others.

        Where /metrics is read regularly, wait until it was read once more.
        """
        self.leaving = self.handler.draining = True
        deadline_s = time.monotonic() + self.config.timeouts.drain_timeout_s
        while self.handler.active and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        await self.health.close()  # its probes hold rooms
        await self.handler.stop(_END_LIMIT_S)
        ended_s = time.monotonic()
        linger_s = min(_SCRAPE_SLACK * self._scrape_every_s, _MAX_LINGER_S)
        while self._scraped_s < ended_s and time.monotonic() < ended_s + linger_s:
            await asyncio.sleep(0.05)

    def scraped(self) -> None:
        """Note that /metrics is read."""
        now_s = time.monotonic()
        if self._scraped_s:
            self._scrape_every_s = now_s - self._scraped_s
        self._scraped_s = now_s

    async def stop(self) -> None:
        """Drain, if that was not done, and end what looks after the workers."""
        await self.drain()
        await self._background.close()
        await self.registry.telemetry.close()
        self.pool.close()
        self.counter.close()

    def close(self) -> None:
        """Write the rest of the log; after the last request has ended."""
        self.log.close()

    def reload(self) -> None:
        """Read keys and classes again, reopen the log."""
        problem = self.keyring.reload()
        self.metrics.reloads.labels("keys", "failed" if problem else "ok").inc()
        if problem is None:
            self.gate.keep(self.keyring.tenants)
            self.dispatcher.configure(self._params())
        self.log.reopen()

    def gauges(self) -> None:
        """Bring the gauges up to date."""
        metrics, active = self.metrics, self.handler.active
        queue = self.dispatcher.snapshot(time.monotonic())["queue"]
        metrics.queued_requests.set(queue["requests"])
        metrics.queued_sequences.set(queue["sequences"])
        metrics.queued_bytes.set(queue["bytes"])
        metrics.reading_bytes.set(self.bodies.held)
        oldest_s = min((active[id].receipt.at_s for id in self.waiting.ids), default=None)
        metrics.oldest_wait.set(0.0 if oldest_s is None else time.monotonic() - oldest_s)
        attempts = {attempt for w in self.registry.workers.values() for attempt in w.attempts}
        metrics.running.set(len(attempts))
        metrics.live_rooms.set(len(self.rooms))
        self.registry.gauges()

    def _params(self) -> DispatchParams:
        limits, config = self.config.limits, self.config
        return DispatchParams(
            max_requests=limits.max_queued_requests,
            max_sequences=limits.max_queued_sequences,
            max_bytes=limits.max_queued_bytes,
            infeasible=AdmissionDecision(config.overload.infeasible),
            tenant_weights={tenant.name: tenant.weight for tenant in self.keyring.tenants},
            binding=config.scheduling.binding,
        )

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + 0.25
            await asyncio.sleep(0.25)
            self.metrics.loop_lag.set(max(loop.time() - due_s, 0.0))


def _named(flag: str, load: Callable[[S], T], source: S) -> T:
    """Load what a flag names; its error then begins with the flag."""
    try:
        return load(source)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
