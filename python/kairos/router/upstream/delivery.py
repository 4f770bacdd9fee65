"""The decode worker's answer, on its way to the client."""

import asyncio
import time

from aiohttp import web

from kairos.router.config.settings import Timeouts
from kairos.router.edge.answers import error_document
from kairos.router.observe.metrics import RouterMetrics
from kairos.router.paths import GENERATE
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.request.context import Answer, RequestContext, Understood
from kairos.router.request.outcome import Outcome
from kairos.router.request.parsing import ParsedRequest
from kairos.router.request.token_counter import TokenCounter
from kairos.router.upstream import relay as relays
from kairos.router.upstream.attempt import Attempt
from kairos.router.upstream.engine_answer import problem_of, usage_of
from kairos.router.upstream.leg import LegError
from kairos.router.upstream.merged_answer import merge_whole, stream_change
from kairos.router.upstream.relay import Relay
from kairos.router.workers.endpoint import Role
from kairos.router.workers.registry import WorkerRegistry

_MAX_ANSWER_BYTES = 256 << 20


class Delivery:
    """Passes answers on, whole or as they come, and notes what they tell."""

    def __init__(
        self,
        registry: WorkerRegistry,
        dispatcher: Dispatcher,
        counter: TokenCounter,
        metrics: RouterMetrics,
        timeouts: Timeouts,
    ) -> None:
        self._registry = registry
        self._dispatcher = dispatcher
        self._counter = counter
        self._metrics = metrics
        self._timeouts = timeouts

    async def deliver(
        self,
        context: RequestContext,
        request: web.BaseRequest,
        understood: Understood,
        attempt: Attempt,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        """Pass an attempt's answer on.

        Args:
            headers: to be added to the answer.

        Raises:
            LegError: the attempt failed before the client got anything.
            SlowClientError: the client does not take its answer.
        """
        if understood.parsed.stream and attempt.status == 200:
            return await self._stream(context, request, understood, attempt, headers)
        return await self._whole(context, understood, attempt, headers)

    async def _whole(
        self,
        context: RequestContext,
        understood: Understood,
        attempt: Attempt,
        headers: dict[str, str],
    ) -> web.Response:
        """An answer that is sent at once: until it is complete another pair may be tried."""
        path = context.receipt.path
        body = await attempt.read_all(_MAX_ANSWER_BYTES)
        error = problem_of(Role.DECODE, attempt.status, body, path)
        if error is None and body[:1] not in (b"{", b"["):
            error = LegError(Role.DECODE, "garbage", "the decode server's answer is not JSON")
        if error is not None:
            raise error
        parsed = understood.parsed
        body = _merged(parsed, await _prompt_part(parsed, attempt), body)
        now_s = time.monotonic()
        usage = usage_of(body, path, batch=parsed.batch is not None)
        context.answer = Answer(now_s, now_s, usage.output_tokens)
        self._completed(context, understood, attempt, usage.prompt_tokens)
        context.answering = True
        return web.Response(body=body, headers={**headers, "Content-Type": attempt.content_type})

    async def _stream(
        self,
        context: RequestContext,
        request: web.BaseRequest,
        understood: Understood,
        attempt: Attempt,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        """A stream, passed on as it comes."""
        parsed, path = understood.parsed, context.receipt.path
        batch = path == GENERATE and parsed.batch is not None
        relay = Relay(request, self._timeouts.write_timeout_s, path, batch)
        late: asyncio.TimerHandle | None = None
        try:
            chunk = await _first_event(attempt, path)
            relay.seen()
            context.answer = Answer(first_s=relay.first_s)
            self._registry.last_success_s = relay.first_s
            self._dispatcher.prefill_done(context.receipt.id, relay.first_s)
            relay.change = stream_change(parsed, await _prompt_part(parsed, attempt))
            context.answering = True
            parsed.body.clear()  # there is no other attempt: the prompt is done with
            late = self._limit(context, attempt)
            await relay.start(attempt.content_type, headers)
            while chunk:
                await relay.pass_on(chunk)
                chunk = await attempt.read()
                if chunk:
                    relay.seen()
            context.answer = relay.answer
            error = problem_of(Role.DECODE, 200, relay.error, path)
            if error is not None:
                raise error
            if relay.aborted or not relay.complete:
                reason = "aborted" if relay.aborted else "stream_incomplete"
                raise LegError(Role.DECODE, reason, "the decode server broke the stream off")
        except LegError as error:
            if not relay.started:
                raise
            context.answer = relay.answer
            return await self._broken_off(context, attempt, relay, error)
        finally:
            if late is not None:
                late.cancel()
        self._completed(context, understood, attempt, relay.prompt_tokens)
        return await relay.finish()

    async def _broken_off(
        self, context: RequestContext, attempt: Attempt, relay: Relay, error: LegError
    ) -> web.StreamResponse:
        """End a stream that failed after its first event with an error event."""
        error.__traceback__ = None  # see RequestHandler._serve
        outcome = Outcome.ENGINE_FAILED
        if error.reason == "shut_down":
            outcome = Outcome.SHUT_DOWN
        elif error.late:
            outcome = Outcome.EXPIRED
        elif error.refused:
            outcome = Outcome.ENGINE_REFUSED
        if error.broken:
            attempt.broke = error.role
        context.ends(outcome, 200, error.reason)
        self._registry.attempt_failed(attempt, error)
        return await relay.break_off(error_document(502, error.reason, str(error)))

    def _limit(self, context: RequestContext, attempt: Attempt) -> asyncio.TimerHandle:
        """Have the attempt fail when the request takes too long.

        The stream then ends with an error event, not with a reset. Every write is bounded.
        """
        context.limit.reschedule(None)
        limit_s = self._timeouts.request_timeout_s
        error = LegError(Role.DECODE, "request_timeout", "the request took too long")
        left_s = context.receipt.at_s + limit_s - time.monotonic()
        return asyncio.get_running_loop().call_later(max(left_s, 0.0), attempt.fail, error)

    def _completed(
        self,
        context: RequestContext,
        understood: Understood,
        attempt: Attempt,
        prompt_tokens: int | None,
    ) -> None:
        context.ends(Outcome.COMPLETED, 200)
        self._registry.succeeded(attempt.prefill, attempt.decode)
        prompt = understood.prompt
        if prompt_tokens and understood.parsed.sequences == 1:
            self._counter.observe(prompt, prompt_tokens)
            if not prompt.exact:
                label = self._metrics.model(prompt.model)
                self._metrics.token_estimate.labels(label).observe(prompt.tokens / prompt_tokens)


async def _first_event(attempt: Attempt, path: str) -> bytes:
    """Return the beginning of a stream, up to the end of its first event at least.

    Until then another pair may be tried, however the bytes were cut on their way.

    Raises:
        LegError: the attempt failed, the first event is an error, or this is no stream of events.
    """
    data = bytearray()
    while not (end := relays.first_event(data)) and len(data) <= relays.MAX_EVENT_BYTES:
        chunk = await attempt.read()
        if not chunk:
            break
        data += chunk
        if not relays.may_be_events(data):
            break
    error = problem_of(Role.DECODE, 200, bytes(data[:end]), path)
    if error is None and not relays.looks_like_events(data):
        error = LegError(Role.DECODE, "garbage", "the decode server's answer is no stream")
    elif error is None and not end:
        text = "the decode server's stream ended within its first event"
        error = LegError(Role.DECODE, "stream_incomplete", text)
    if error is not None:
        raise error
    return bytes(data)


async def _prompt_part(parsed: ParsedRequest, attempt: Attempt) -> bytes:
    """The prefill server's answer, where it is part of the client's."""
    return await attempt.prefilled() if parsed.merge_logprobs else b""


def _merged(parsed: ParsedRequest, prefill: bytes, decode: bytes) -> bytes:
    try:
        return merge_whole(parsed, prefill, decode)
    except (ValueError, TypeError, AttributeError, KeyError):
        raise LegError(Role.PREFILL, "garbage", "the servers' answers do not fit") from None
