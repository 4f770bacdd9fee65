"""The owner of every request: from its receipt through queue and pair to exactly one outcome."""

import asyncio
import itertools
import logging
import ssl
import time
from collections.abc import Mapping
from functools import cached_property

import aiohttp
from aiohttp import web
from opentelemetry import trace

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.router.background import Background
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.answers import error_document, refusal
from kairos.router.edge.errors import (
    RequestError,
    failed,
    invalid,
    rejected,
    stopped,
    unavailable,
)
from kairos.router.edge.keys import Keyring
from kairos.router.edge.limits import TenantGate, check_headers, read_body
from kairos.router.edge.tenant import Tenant
from kairos.router.edge.tls import client_context
from kairos.router.observe import tracing
from kairos.router.observe.access_log import AccessLog
from kairos.router.observe.metrics import RouterMetrics
from kairos.router.queue.admission import Decision
from kairos.router.queue.demand import Assignment, RequestDemand
from kairos.router.queue.dispatch_waiter import DispatchWaiter
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.params import DispatchParams
from kairos.router.request import parsing as intakes
from kairos.router.request.body_memory import BodyMemory, BodyReservation
from kairos.router.request.context import RequestContext
from kairos.router.request.outcome import Outcome
from kairos.router.request.token_counter import TokenCounter
from kairos.router.upstream.attempt import AttemptDeps, Pair
from kairos.router.upstream.delivery import Delivery
from kairos.router.upstream.http_client import ConnectionPool
from kairos.router.upstream.leg import LegError
from kairos.router.upstream.relay import SlowClientError
from kairos.router.upstream.rooms import BootstrapRooms, new_rid
from kairos.router.workers.discovery import WorkerDiscovery
from kairos.router.workers.endpoint import Role
from kairos.router.workers.health import Health
from kairos.router.workers.registry import WorkerRegistry
from kairos.router.workers.telemetry import Telemetry
from kairos.router.workers.worker import State, Worker
from kairos.slo import APPLIED_HEADER, from_headers

_log = logging.getLogger(__name__)

_END_LIMIT_S = 15.0  # for what ends in the background when the router stops


class Router:
    """All parts of one router process, tied together.

    Raises:
        InputError: a file that the configuration names cannot be used.
    """

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.metrics = RouterMetrics(config.listen.cell, config.listen.cells)
        self.keyring = Keyring(config)
        self.log = AccessLog(config.observability.access_log, self.metrics.log_dropped.inc)
        self.counter = TokenCounter(config.scheduling.tokenizer_path)
        self.dispatcher = Dispatcher(self._params())
        self.waiting = DispatchWaiter(self.dispatcher, config.timeouts.queue_timeout_s)
        self.rooms = BootstrapRooms()
        self.pool = ConnectionPool(lambda: self._tls, config.timeouts.connect_timeout_s)
        self.parts = AttemptDeps(self.pool, self.rooms, config.timeouts, self.metrics)
        self.registry = WorkerRegistry(
            config.workers,
            self.dispatcher,
            self.pool,
            self.metrics,
            load_profile(config.scheduling.profile),
            self.waiting.schedule_dispatch,
        )
        self.health = Health(
            config.workers, self.registry, self.parts, self.engine_headers, self.admin_headers
        )
        self.discovery = WorkerDiscovery(config, self.registry.discovered)
        self.gate = TenantGate()
        self.bodies = BodyMemory(config.limits.max_reading_bytes, config.overload.overload_status)
        self._delivery = Delivery(
            self.registry, self.dispatcher, self.counter, self.metrics, config.timeouts
        )
        self.draining = False
        self.active_requests: dict[int, RequestContext] = {}
        self._ids = itertools.count(1)
        self._background = Background()
        self._session: aiohttp.ClientSession | None = None
        # Without an SDK and without a client's trace, spans would cost a tenth and record nothing.
        self._records = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)

    async def start(self) -> None:
        """Begin to look after the servers."""
        connector = aiohttp.TCPConnector(ssl=self._tls)
        self._session = aiohttp.ClientSession(connector=connector, headers=self.engine_headers())
        self.registry.telemetry = Telemetry(self.registry.load, self._session)
        self.health.start()
        self.discovery.start()
        self._background.start(self.discovery.run(), "discovery")
        self._background.start(self._measure_lag(), "loop lag")

    async def stop(self) -> None:
        """Let running requests end, for the drain time at most, then end them."""
        self.draining = True
        deadline_s = time.monotonic() + self.config.timeouts.drain_timeout_s
        while self.active_requests and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        await self.health.close()  # its probes hold rooms
        deadline_s = time.monotonic() + _END_LIMIT_S
        while (self.active_requests or len(self.rooms)) and time.monotonic() < deadline_s:
            # Again and again: one that was between two attempts waits for a pair now.
            for life in list(self.active_requests.values()):
                self._shut_down(life)
            await asyncio.sleep(0.02)
        await self._background.close()
        if self.registry.telemetry is not None:
            await self.registry.telemetry.close()
        if self._session is not None:
            await self._session.close()
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

    def engine_headers(self) -> dict[str, str]:
        """What the servers want to see with every request."""
        key = self.keyring.engine_key
        return {} if key is None else {"authorization": f"Bearer {key}"}

    def admin_headers(self) -> dict[str, str]:
        """The same for their administrative endpoints."""
        key = self.keyring.engine_admin_key
        return {} if key is None else {"authorization": f"Bearer {key}"}

    async def body_of(self, request: web.BaseRequest, held: BodyReservation) -> bytes:
        """See `read_body`."""
        return await read_body(request, self.config.limits, self.config.timeouts, held)

    def gauges(self) -> None:
        """Bring the gauges up to date."""
        metrics = self.metrics
        queue = self.dispatcher.snapshot(time.monotonic())["queue"]
        metrics.queued_requests.set(queue["requests"])
        metrics.queued_sequences.set(queue["sequences"])
        metrics.queued_bytes.set(queue["bytes"])
        metrics.reading_bytes.set(self.bodies.held)
        oldest_s = min(
            (self.active_requests[id].received_s for id in self.waiting.ids), default=None
        )
        metrics.oldest_wait.set(0.0 if oldest_s is None else time.monotonic() - oldest_s)
        pairs = {pair for i in self.registry.workers.values() for pair in i.pairs}
        metrics.running.set(len(pairs))
        metrics.live_rooms.set(len(self.rooms))
        self.registry.gauges()

    async def generate(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request; it ends in exactly one outcome, whatever happens."""
        traced = self._records or "traceparent" in request.headers
        begun = tracing.begin(request.headers, request.path) if traced else None
        life = RequestContext(next(self._ids), request, begun)
        life.rid = new_rid()
        self.active_requests[life.id] = life
        try:
            async with asyncio.timeout(self.config.timeouts.request_timeout_s) as limit:
                life.limit = limit
                return await self._serve(life, request)
        except RequestError as error:
            life.end(error.outcome, error.status, error.reason)
            return refusal(error, self._echo(life))
        except TimeoutError:
            reason = "request_timeout" if limit.expired() else "timeout"
            life.end(Outcome.EXPIRED, 504, reason)
            if life.sent:
                _cut(request)
                raise
            late = RequestError(504, Outcome.EXPIRED, reason, "the request took too long")
            return refusal(late, self._echo(life))
        except SlowClientError:
            life.end(Outcome.CLIENT_GONE, 499, "slow_reader")
            _cut(request)
            raise asyncio.CancelledError from None
        except (asyncio.CancelledError, ConnectionError) as error:
            if life.stopped and life.task is not None and isinstance(error, asyncio.CancelledError):
                life.task.uncancel()
                end = stopped()
                life.end(end.outcome, end.status, end.reason)
                return refusal(end, self._echo(life))
            life.end(Outcome.CLIENT_GONE, 499, "disconnected")
            raise
        except Exception:
            _log.exception("request %s", life.rid)
            life.end(Outcome.ENGINE_FAILED, 500, "internal")
            if life.sent:
                raise
            internal = RequestError(500, Outcome.ENGINE_FAILED, "internal", "internal error")
            return refusal(internal)
        finally:
            self._ended(life)

    async def _serve(self, life: RequestContext, request: web.BaseRequest) -> web.StreamResponse:
        if self.draining:
            raise unavailable("draining", "the router is shutting down")
        check_headers(request.raw_headers, self.config.limits)
        tenant = self.keyring.authenticate(request.headers)
        life.tenant = tenant
        self.gate.enter(tenant, life.received_s)
        life.entered = True
        with self.bodies.hold(tenant.name, tenant.weight) as held:
            raw = await self.body_of(request, held)
            await self._read(life, tenant, request.headers, raw)
            del raw
            self._offer(life)  # from here on the queue's bounds hold
        retries = self.config.overload.retries
        while True:
            assignment = await self.waiting.pair_for(life.id)
            life.dispatched_s = time.monotonic()
            life.attempts += 1
            try:
                return await self._attempt(life, request, assignment)
            except LegError as error:
                # The pair keeps it, and by its frames the body: the collector comes rarely.
                error.__traceback__ = None
                self.registry.attempt_failed(life.pair, error)
                again = not life.sent and not error.refused and not error.late
                if not again or life.attempts > retries or self.draining:
                    if error.refused:
                        return self._refused_by_server(life, error)
                    raise failed(error) from None
                self.metrics.retries.labels(self.metrics.reason(error.reason)).inc()
                await self._again(life, error.reason)

    async def _read(
        self, life: RequestContext, tenant: Tenant, headers: Mapping[str, str], raw: bytes
    ) -> None:
        """Note down what a body asks for, by when and how much it is."""
        intake = life.intake = intakes.read(life.path, raw, self.config.limits.max_sequences)
        try:
            asked = from_headers(headers.items()).over(intake.asked)
            life.slo = tenant.applied_slo(asked)
            life.arrival_s = life.received_s - tenant.elapsed_ms(asked) / 1e3
            life.counted = await self.counter.count(life.path, intake.body)
        except InputError as error:
            raise invalid(400, "body_invalid", str(error)) from None

    def _offer(self, life: RequestContext) -> None:
        intake, counted, tenant = life.intake, life.counted, life.tenant
        assert intake
        assert counted
        assert tenant
        assert life.slo
        if not all(
            self.registry.of(role, State.READY, State.STARTING, State.OPEN) for role in Role
        ):
            raise unavailable("no_pair", "no prefill or no decode server is reachable")
        work = RequestDemand(
            life.id,
            tenant.name,
            life.slo,
            life.arrival_s,
            counted.tokens,
            intake.max_output_tokens,
            intake.sequences,
            intake.size,
            counted.blocks,
            counted.block_tokens,
        )
        verdict = self.dispatcher.offer(work, time.monotonic())
        if not verdict.queued:
            raise rejected(verdict, self.config.overload.overload_status)
        life.offered = True
        life.slo = verdict.slo
        life.best_effort = verdict.decision is Decision.BEST_EFFORT
        life.predicted_ttft_s = verdict.predicted_ttft_s

    async def _attempt(
        self, life: RequestContext, request: web.BaseRequest, assignment: Assignment
    ) -> web.StreamResponse:
        prefill = self.registry.workers.get(assignment.prefill)
        decode = self.registry.workers.get(assignment.decode)
        for role, instance in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
            if instance is None:
                raise LegError(role, "server_gone", "the server was removed")
        assert prefill
        assert decode
        assert life.intake
        assert life.slo
        if assignment.cached_tokens:
            self.metrics.prefix_hits.inc(assignment.cached_tokens)
        intake = life.intake
        count = intake.sequences
        rids = tuple(new_rid() for _ in range(count))
        rooms = self.rooms.take(count)
        life.rid = rids[0]
        pair = life.pair = Pair(
            self.parts, prefill, decode, rids, rooms,
            lambda: self._prefilled(life), self.admin_headers(), intake.stream,
        )  # fmt: skip
        elapsed_s = time.monotonic() - life.arrival_s
        name = life.slo.slo_class
        named = prefill.knows_class(name) and decode.knows_class(name)
        headers, legs = self._leg_headers(life, prefill, decode)
        problem: str | None = "ended early"
        try:
            status = await pair.open(
                life.path,
                intakes.encode_engine_body(
                    intake, life.slo, elapsed_s, prefill.endpoint, rids, rooms, named
                ),
                headers,
            )
            answer = await self._delivery.deliver(life, request, pair, status, self._echo(life))
            problem = None
            return answer
        except LegError as error:
            problem = error.reason
            raise
        finally:
            for leg in legs:
                leg.end(problem)

    def _refused_by_server(self, life: RequestContext, error: LegError) -> web.Response:
        """Pass on what the server finds wrong with the request."""
        life.end(Outcome.ENGINE_REFUSED, error.status, error.reason)
        body = error.body
        if body[:1] != b"{":
            body = error_document(error.status, error.reason, str(error))
        return web.Response(
            body=body,
            status=error.status,
            headers=self._echo(life),
            content_type="application/json",
        )

    async def _again(self, life: RequestContext, reason: str) -> None:
        """Return when the old pair is gone and the request waits for another one."""
        pair = life.pair
        if pair is not None:
            await asyncio.shield(self._ending(pair, reason))
            life.pair = None
        if not self.dispatcher.requeue(life.id, time.monotonic()):
            raise unavailable("server_gone", "the server was removed")

    def _ending(self, pair: Pair, reason: str) -> "asyncio.Task[None]":
        """The one task that ends an attempt; the client may leave while it runs."""

        async def over() -> None:
            try:
                await pair.end(reason)
            finally:
                self.registry.idle(pair.prefill)
                self.registry.idle(pair.decode)

        if pair.ending is None:
            pair.ending = self._background.start(over(), "end of an attempt")
        return pair.ending

    def _ended(self, life: RequestContext) -> None:
        """Count a request once, and see to it that its servers are done with it too."""
        now_s = time.monotonic()
        del self.active_requests[life.id]
        if life.outcome is None:
            life.end(Outcome.CLIENT_GONE, 499, "disconnected")
        if life.tenant is not None and life.entered:
            self.gate.leave(life.tenant)
        if life.offered:
            self._release(life, now_s)
        end = life.record(now_s)
        self.metrics.ended(end)
        self.log.write(end)
        if life.trace is not None:
            life.trace.end(end)

    def _release(self, life: RequestContext, now_s: float) -> None:
        """What a request holds is free when its servers have let go of it."""
        pair = life.pair
        if pair is None or pair.settled():
            self._let_go(life, now_s)
            if pair is not None:
                self.registry.idle(pair.prefill)
                self.registry.idle(pair.decode)
            return

        async def later() -> None:
            try:
                await self._ending(pair, life.reason or "done")
            finally:
                self._let_go(life, time.monotonic())

        self._background.start(later(), "end of a request")

    def _let_go(self, life: RequestContext, now_s: float) -> None:
        if life.outcome is Outcome.COMPLETED:
            self.dispatcher.finished(life.id, now_s, life.output_tokens)
        else:
            self.dispatcher.cancelled(life.id, now_s)
        self.waiting.schedule_dispatch()

    def _prefilled(self, life: RequestContext) -> None:
        self.dispatcher.prefill_done(life.id, time.monotonic())
        self.waiting.schedule_dispatch()

    def _shut_down(self, life: RequestContext) -> None:
        if self.waiting.give_up(life.id, stopped()):
            return
        if life.pair is not None:
            life.pair.fail(LegError(Role.DECODE, "shut_down", "the router stopped"))
        elif not life.stopped and life.task is not None:
            # Its body is being read or its prompt counted.
            life.stopped = True
            life.task.cancel()

    def _echo(self, life: RequestContext) -> dict[str, str]:
        headers = {"x-request-id": life.rid}
        if life.slo is not None:
            headers[APPLIED_HEADER] = life.slo.header()
        if self.config.observability.show_servers and life.pair is not None:
            headers["x-kairos-prefill"] = life.pair.prefill.key
            headers["x-kairos-decode"] = life.pair.decode.key
        return headers

    def _leg_headers(
        self, life: RequestContext, prefill: Worker, decode: Worker
    ) -> tuple[Mapping[Role, Mapping[str, str]], list[tracing.LegTrace]]:
        common = self.engine_headers()
        if life.trace is None:
            return {Role.PREFILL: common, Role.DECODE: common}, []
        legs = {
            role: life.trace.leg(role.value, instance.key, life.attempts)
            for role, instance in ((Role.PREFILL, prefill), (Role.DECODE, decode))
        }
        return {role: {**common, **leg.headers} for role, leg in legs.items()}, list(legs.values())

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return client_context(self.config.security)

    def _params(self) -> DispatchParams:
        limits, config = self.config.limits, self.config
        return DispatchParams(
            max_requests=limits.max_queued_requests,
            max_sequences=limits.max_queued_sequences,
            max_bytes=limits.max_queued_bytes,
            infeasible=config.overload.infeasible,
            tenant_weights={tenant.name: tenant.weight for tenant in self.keyring.tenants},
            binding=config.scheduling.binding,
        )

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + 0.25
            await asyncio.sleep(0.25)
            self.metrics.loop_lag.set(max(loop.time() - due_s, 0.0))


def run(config: RouterConfig) -> int:
    """Serve until told to stop; the exit code."""
    from kairos.router.edge.app import serve

    return serve(config)


def _cut(request: web.BaseRequest) -> None:
    """Close the connection at once: nothing more can be said on it."""
    if request.transport is not None:
        request.transport.abort()
