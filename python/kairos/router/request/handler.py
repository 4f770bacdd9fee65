"""The one place that takes a request from its receipt to its outcome."""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import xxhash
from aiohttp import web
from opentelemetry import trace

from kairos.errors import InputError
from kairos.policy.admission import AdmissionDecision
from kairos.router.background import Background
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.answers import SERVER, error_document, refusal
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
from kairos.router.observe import tracing
from kairos.router.observe.access_log import AccessLog
from kairos.router.observe.metrics import RouterMetrics
from kairos.router.queue.dispatch_waiter import DispatchWaiter
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.request import Assignment, RequestDemand
from kairos.router.request import parsing
from kairos.router.request.body_memory import BodyMemory, BodyReservation
from kairos.router.request.context import Admission, Receipt, RequestContext, Understood
from kairos.router.request.engine_body import encode_engine_body, slo_fields
from kairos.router.request.outcome import Outcome
from kairos.router.request.quarantine import Quarantine
from kairos.router.request.token_counter import TokenCounter
from kairos.router.upstream.attempt import Attempt, AttemptDeps
from kairos.router.upstream.delivery import Delivery
from kairos.router.upstream.leg import LegError
from kairos.router.upstream.relay import SlowClientError
from kairos.router.upstream.rooms import new_rid
from kairos.router.workers.endpoint import Role
from kairos.router.workers.health import Health
from kairos.router.workers.registry import WorkerRegistry
from kairos.slo import APPLIED_HEADER, from_headers

_LARGE_BYTES = 64 << 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HandlerDeps:
    """The parts of the router that a request passes."""

    config: RouterConfig
    metrics: RouterMetrics
    log: AccessLog
    keyring: Keyring
    gate: TenantGate
    memory: BodyMemory
    counter: TokenCounter
    dispatcher: Dispatcher
    waiter: DispatchWaiter
    registry: WorkerRegistry
    health: Health
    attempts: AttemptDeps
    engine_headers: Callable[[], Mapping[str, str]]


class RequestHandler:
    """Serves generation requests; each ends in exactly one outcome, whatever happens.

    Attributes:
        active: the requests that have not ended, by id.
        draining: the router shuts down and takes no more.
    """

    def __init__(self, deps: HandlerDeps) -> None:
        self.active: dict[int, RequestContext] = {}
        self.draining = False
        self.quarantine = Quarantine()
        self._deps = deps
        self._delivery = Delivery(
            deps.registry, deps.dispatcher, deps.counter, deps.metrics, deps.config.timeouts
        )
        self._ids = itertools.count(1)
        self._background = Background()
        # Without an SDK and without a client's trace, spans would cost a tenth and record nothing.
        self._records = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)

    async def __call__(
        self, request: web.BaseRequest, path: str, extra: Mapping[str, str]
    ) -> web.StreamResponse:
        """Serve one request.

        Args:
            path: the endpoint.
            extra: header lines of the answer.
        """
        limit = asyncio.timeout(self._deps.config.timeouts.request_timeout_s)
        context = self._receive(request, path, extra, limit)
        try:
            async with limit:
                return await self._serve(context, request)
        except RequestError as error:
            context.ends(error.outcome, error.status, error.reason)
            return refusal(error, self._headers(context))
        except TimeoutError:
            reason = "request_timeout" if limit.expired() else "timeout"
            context.ends(Outcome.EXPIRED, 504, reason)
            if context.answering:
                _cut(request)
                raise
            late = RequestError(504, Outcome.EXPIRED, reason, "the request took too long")
            return refusal(late, self._headers(context))
        except SlowClientError:
            context.ends(Outcome.CLIENT_GONE, 499, "slow_reader")
            _cut(request)
            raise asyncio.CancelledError from None
        except (asyncio.CancelledError, ConnectionError) as error:
            if context.stopped and context.task and isinstance(error, asyncio.CancelledError):
                context.task.uncancel()
                end = stopped()
                context.ends(end.outcome, end.status, end.reason)
                return refusal(end, self._headers(context))
            context.ends(Outcome.CLIENT_GONE, 499, "disconnected")
            raise
        except Exception:
            _log.exception("request %s", context.rid)
            context.ends(Outcome.ROUTER_FAILED, 500, "internal")
            if context.answering:
                raise
            internal = RequestError(500, Outcome.ROUTER_FAILED, "internal", "internal error")
            return refusal(internal, self._headers(context))
        finally:
            self._record(context)

    async def stop(self, limit_s: float) -> None:
        """End what still runs, for `limit_s` seconds at most."""
        deadline_s = time.monotonic() + limit_s
        while (self.active or len(self._deps.attempts.rooms)) and time.monotonic() < deadline_s:
            # Repeated, because a request between two attempts waits for a pair afterwards.
            for context in list(self.active.values()):
                self._shut_down(context)
            await asyncio.sleep(0.02)
        await self._background.close()

    # The stages, in their order.

    def _receive(
        self,
        request: web.BaseRequest,
        path: str,
        extra: Mapping[str, str],
        limit: asyncio.Timeout,
    ) -> RequestContext:
        traced = self._records or "traceparent" in request.headers
        begun = tracing.begin(request.headers, path) if traced else None
        receipt = Receipt.of(next(self._ids), request, path, extra)
        context = RequestContext(receipt, new_rid(), limit, begun)
        self.active[context.receipt.id] = context
        return context

    async def _serve(self, context: RequestContext, request: web.BaseRequest) -> web.StreamResponse:
        tenant = self._admit(context, request)
        with self._deps.memory.hold(tenant.name, tenant.weight) as reservation:
            understood = await self._read(context, request, tenant, reservation)
            demand = self._enqueue(context, tenant, understood)  # the queue bounds it from here on
        while True:
            assignment = await self._deps.waiter.pair_for(demand.id)
            context.dispatched_s = time.monotonic()
            context.attempts += 1
            try:
                return await self._attempt(context, request, understood, assignment)
            except LegError as error:
                # The attempt keeps it, and by its frames the body: the collector comes rarely.
                error.__traceback__ = None
                await self._retry(context, understood, error)
                if error.refused:
                    return self._pass_on_refusal(context, error)

    def _admit(self, context: RequestContext, request: web.BaseRequest) -> Tenant:
        """Check header lines and key, and count the request against its tenant's limits."""
        deps = self._deps
        if self.draining:
            raise unavailable("draining", "the router is shutting down")
        check_headers(request.raw_headers, deps.config.limits)
        tenant = deps.keyring.authenticate(request.headers)
        context.tenant = tenant
        deps.gate.enter(tenant, context.receipt.at_s)
        context.counted = True
        return tenant

    async def _read(
        self,
        context: RequestContext,
        request: web.BaseRequest,
        tenant: Tenant,
        reservation: BodyReservation,
    ) -> Understood:
        """Read and parse the body, count its prompt, and settle its objectives."""
        deps, path = self._deps, context.receipt.path
        raw = await read_body(request, deps.config.limits, deps.config.timeouts, reservation)
        digest = xxhash.xxh3_64_intdigest(raw)
        self.quarantine.check(digest, time.monotonic())
        size = parsing.memory_of(raw)
        reservation.grow_to(size)
        # Each step of a large body may hold the event loop for as long as others may wait.
        large = len(raw) > _LARGE_BYTES
        if large:
            await asyncio.sleep(0)
        body = parsing.load(raw)
        if large:
            await asyncio.sleep(0)
        parsed = parsing.read(path, raw, body, size, deps.config.limits, deps.registry.model_limits)
        del raw, body
        try:
            asked = from_headers(request.headers.items()).over(parsed.asked)
            slo = tenant.applied_slo(asked)
            prompt = await deps.counter.count(path, parsed.body)
        except InputError as error:
            raise invalid(400, "body_invalid", str(error)) from None
        arrival_s = context.receipt.at_s - tenant.elapsed_ms(asked) / 1e3
        context.understood = Understood(parsed, prompt, slo, arrival_s, digest)
        return context.understood

    def _enqueue(
        self, context: RequestContext, tenant: Tenant, understood: Understood
    ) -> RequestDemand:
        """Offer the request to the queue, which may loosen its objectives or refuse it."""
        deps, parsed, prompt = self._deps, understood.parsed, understood.prompt
        if not deps.registry.reachable:
            raise unavailable("no_pair", "no prefill or no decode server is reachable")
        demand = RequestDemand(
            context.receipt.id,
            tenant.name,
            understood.slo,
            understood.arrival_s,
            prompt.tokens,
            parsed.max_output_tokens,
            parsed.sequences,
            parsed.size,
            prompt.blocks,
            prompt.block_tokens,
        )
        result = deps.dispatcher.offer(demand, time.monotonic())
        if not result.queued:
            raise rejected(result, deps.config.overload.overload_status)
        weakened = result.decision is AdmissionDecision.BEST_EFFORT
        best_effort = weakened or math.isinf(result.slo.ttft_ms)
        context.admission = Admission(result.slo, best_effort, result.predicted_ttft_s)
        return demand

    async def _attempt(
        self,
        context: RequestContext,
        request: web.BaseRequest,
        understood: Understood,
        assignment: Assignment,
    ) -> web.StreamResponse:
        """Send the request to a pair and pass its answer on."""
        deps, parsed = self._deps, understood.parsed
        prefill = deps.registry.find(Role.PREFILL, assignment.prefill)
        decode = deps.registry.find(Role.DECODE, assignment.decode)
        if assignment.cached_tokens:
            deps.metrics.prefix_hits.inc(assignment.cached_tokens)
        if context.attempts > 1:
            context.rid = new_rid()
        rids = (context.rid, *(new_rid() for _ in range(parsed.sequences - 1)))
        attempt = context.attempt = Attempt(
            deps.attempts,
            prefill,
            decode,
            rids,
            lambda: self._prefilled(context.receipt.id, attempt),
            parsed.stream,
        )
        attempt.digest = understood.digest
        legs = self._trace_legs(context, attempt)
        problem: str | None = "ended early"
        try:
            await self._open(context, understood, attempt, legs)
            answer = await self._delivery.deliver(
                context, request, understood, attempt, self._headers(context)
            )
            problem = None
            if attempt.broke is not None:
                # The client has begun to read: the death counts, but there is no other attempt.
                died = self._died_of(understood, attempt, attempt.broke)
                self._background.start(died, "check of a death")
            return answer
        except LegError as error:
            problem = error.reason
            raise
        finally:
            for leg in legs.values():
                leg.end(problem)

    async def _open(
        self,
        context: RequestContext,
        understood: Understood,
        attempt: Attempt,
        legs: Mapping[Role, tracing.LegTrace],
    ) -> None:
        """Send the request to both workers. Nothing here is kept while the answer streams."""
        prefill, decode = attempt.prefill, attempt.decode
        slo = context.slo or understood.slo
        fields = slo_fields(
            slo,
            time.monotonic() - understood.arrival_s,
            prefill.knows_class(slo.slo_class) and decode.knows_class(slo.slo_class),
        )
        common = dict(self._deps.engine_headers())
        if context.receipt.client_id:
            common["x-request-id"] = context.receipt.client_id
        headers = {
            role: {**common, **legs[role].headers} if role in legs else common for role in Role
        }
        body = encode_engine_body(understood.parsed, fields, prefill.endpoint, attempt.transfer)
        await attempt.open(context.receipt.path, body, headers)

    async def _retry(
        self, context: RequestContext, understood: Understood, error: LegError
    ) -> None:
        """Queue the request for another pair; return without doing so if a server refused it.

        Raises:
            RequestError: it is not tried again.
        """
        deps, attempt = self._deps, context.attempt
        if attempt is not None:
            deps.registry.attempt_failed(attempt, error)
        if error.refused:
            return
        if (
            attempt is not None
            and error.broken
            and await self._died_of(understood, attempt, error.role)
        ):
            text = f"the {error.role.value} server died while it had this request"
            raise RequestError(502, Outcome.ENGINE_FAILED, "server_died", text) from None
        used_up = context.attempts > deps.config.overload.retries
        if context.answering or error.late or self.draining or (used_up and not error.moved):
            raise failed(error) from None
        if error.moved:
            context.attempts -= 1
        deps.metrics.retries.labels(deps.metrics.reason(error.reason)).inc()
        if attempt is not None:
            await asyncio.shield(self._ending(attempt, error.reason))
            context.attempt = None
        if not deps.dispatcher.requeue(context.receipt.id, time.monotonic()):
            raise unavailable("server_gone", "the server was removed")

    async def _died_of(self, understood: Understood, attempt: Attempt, role: Role) -> bool:
        """Return whether a worker died of the request, and remember its death.

        It did if the request was alone there, or if it is the second worker to die with it.
        """
        worker = attempt.worker(role)
        together = worker.leg_broke(attempt)
        if not await self._deps.health.died(worker):
            return False
        deaths = self.quarantine.died(understood.digest, time.monotonic())
        return together == 1 or deaths > 1

    def _pass_on_refusal(self, context: RequestContext, error: LegError) -> web.Response:
        """The answer of a server that finds fault with the request."""
        context.ends(Outcome.ENGINE_REFUSED, error.status, error.reason)
        body = error.body
        if body[:1] != b"{":
            body = error_document(error.status, error.reason, str(error))
        return web.Response(
            body=body,
            status=error.status,
            headers=self._headers(context),
            content_type="application/json",
        )

    def _record(self, context: RequestContext) -> None:
        """Count and log a request once, and have its workers let go of it."""
        now_s = time.monotonic()
        deps = self._deps
        del self.active[context.receipt.id]
        if context.tenant is not None and context.counted:
            deps.gate.leave(context.tenant)
        if context.admission is not None:
            self._release(context, now_s)
        record = context.record(now_s)
        deps.metrics.ended(record)
        deps.log.write(record)
        if context.trace is not None:
            context.trace.end(record)

    # What an attempt holds.

    def _ending(self, attempt: Attempt, reason: str) -> "asyncio.Task[None]":
        """The one task that ends an attempt; the client may leave while it runs."""

        async def over() -> None:
            try:
                await attempt.end(reason)
            finally:
                self._let_go(attempt)

        if attempt.ending is None:
            attempt.ending = self._background.start(over(), "end of an attempt")
        return attempt.ending

    def _release(self, context: RequestContext, now_s: float) -> None:
        """What a request holds is free when its workers have let go of it."""
        attempt = context.attempt
        if attempt is None or attempt.settled():
            self._free(context, now_s)
            if attempt is not None:
                self._let_go(attempt)
            return

        async def later() -> None:
            try:
                await self._ending(attempt, context.end.reason if context.end else "done")
            finally:
                self._free(context, time.monotonic())

        self._background.start(later(), "end of a request")

    def _free(self, context: RequestContext, now_s: float) -> None:
        dispatcher, id = self._deps.dispatcher, context.receipt.id
        if context.end is not None and context.end.outcome is Outcome.COMPLETED:
            dispatcher.finished(id, now_s, context.answer.output_tokens)
        else:
            dispatcher.cancelled(id, now_s)
        self._deps.waiter.schedule_dispatch()

    def _let_go(self, attempt: Attempt) -> None:
        self._deps.registry.idle(attempt.prefill)
        self._deps.registry.idle(attempt.decode)

    def _prefilled(self, id: int, attempt: Attempt) -> None:
        self._deps.dispatcher.prefill_done(id, time.monotonic())
        self._deps.registry.idle(attempt.prefill)
        self._deps.waiter.schedule_dispatch()

    def _shut_down(self, context: RequestContext) -> None:
        if self._deps.waiter.fail(context.receipt.id, stopped()):
            return
        if context.attempt is not None:
            context.attempt.fail(LegError(Role.DECODE, "shut_down", "the router stopped"))
        elif not context.stopped and context.task is not None:
            # Its body is being read or its prompt counted.
            context.stopped = True
            context.task.cancel()

    # Header lines.

    def _headers(self, context: RequestContext) -> dict[str, str]:
        """What the router adds to every answer."""
        headers = {
            **SERVER,
            **context.receipt.extra,
            "x-request-id": context.receipt.client_id or context.rid,
            "x-kairos-request-id": context.rid,
        }
        if context.slo is not None:
            headers[APPLIED_HEADER] = context.slo.header()
        attempt = context.attempt
        if self._deps.config.observability.show_servers and attempt is not None:
            headers["x-kairos-prefill"] = attempt.prefill.key
            headers["x-kairos-decode"] = attempt.decode.key
        return headers

    def _trace_legs(
        self, context: RequestContext, attempt: Attempt
    ) -> Mapping[Role, tracing.LegTrace]:
        """Begin the spans of both legs, where the request is traced."""
        if context.trace is None:
            return {}
        return {
            role: context.trace.leg(role.value, attempt.worker(role).key, context.attempts)
            for role in Role
        }


def _cut(request: web.BaseRequest) -> None:
    """Close the connection at once: nothing more can be said on it."""
    if request.transport is not None:
        request.transport.abort()
