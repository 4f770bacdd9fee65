"""The decode server's answer, on its way to the client."""

import asyncio
import time

from aiohttp import web

from kairos.router.config.settings import Timeouts
from kairos.router.edge.answers import error_document
from kairos.router.observe.metrics import RouterMetrics
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.request import parsing as intakes
from kairos.router.request.context import RequestContext
from kairos.router.request.outcome import Outcome
from kairos.router.request.token_counter import TokenCounter
from kairos.router.upstream import relay as relays
from kairos.router.upstream.attempt import Pair
from kairos.router.upstream.engine_answer import problem_of
from kairos.router.upstream.leg import LegError
from kairos.router.upstream.relay import Relay
from kairos.router.workers.endpoint import Role
from kairos.router.workers.registry import WorkerRegistry

_MAX_ANSWER_BYTES = 256 << 20


class Delivery:
    """Passes answers on, whole or as they come, and notes down what they tell."""

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
        life: RequestContext,
        request: web.BaseRequest,
        pair: Pair,
        status: int,
        echo: dict[str, str],
    ) -> web.StreamResponse:
        """Pass on what `pair` answers.

        Args:
            status: the decode server's.
            echo: headers to add.

        Raises:
            LegError: the pair failed before the client got anything.
            SlowClientError: the client does not take its answer.
        """
        assert life.intake
        if life.intake.stream and status == 200:
            return await self._stream(life, request, pair, echo)
        return await self._whole(life, pair, status, echo)

    async def _whole(
        self, life: RequestContext, pair: Pair, status: int, echo: dict[str, str]
    ) -> web.Response:
        """An answer that is sent at once: until it is complete another pair may be tried."""
        assert life.intake
        body = await pair.read_all(_MAX_ANSWER_BYTES)
        error = problem_of(Role.DECODE, status, body, life.path)
        if error is None and body[:1] not in (b"{", b"["):
            error = LegError(Role.DECODE, "garbage", "the decode server's answer is not JSON")
        if error is not None:
            raise error
        if life.intake.merge_logprobs:
            body = _merged(await pair.prefilled(), body)
        life.first_s = life.last_s = time.monotonic()
        count = relays.reported if life.intake.batch is None else relays.reported_in_all
        life.output_tokens = count(body, b'"completion_tokens":')
        self._completed(life, pair, relays.reported(body, b'"prompt_tokens":'))
        life.sent = True
        headers = {**echo, "Content-Type": pair.content_type}
        return web.Response(body=body, headers=headers)

    async def _stream(
        self, life: RequestContext, request: web.BaseRequest, pair: Pair, echo: dict[str, str]
    ) -> web.StreamResponse:
        """A stream, passed on as it comes."""
        assert life.intake
        batch = life.path == intakes.GENERATE and life.intake.batch is not None
        relay = Relay(request, self._timeouts.write_timeout_s, life.path, batch)
        late: asyncio.TimerHandle | None = None
        try:
            chunk = await pair.read()
            error = problem_of(Role.DECODE, 200, chunk, life.path)
            if error is None and not relays.looks_like_events(chunk):
                error = LegError(Role.DECODE, "garbage", "the decode server's answer is no stream")
            if error is not None:
                raise error
            relay.seen()
            life.first_s = relay.first_s
            self._registry.last_success_s = relay.first_s
            self._dispatcher.first_token(life.id, relay.first_s)
            if life.intake.merge_logprobs:
                relay.change = relays.LogprobMerge(await pair.prefilled())
            life.sent = True
            life.intake.body.clear()  # there is no other attempt: the prompt is done with
            late = self._limit(life, pair)
            await relay.start(pair.content_type, echo)
            while chunk:
                await relay.pass_on(chunk)
                chunk = await pair.read()
                if chunk:
                    relay.seen()
            life.last_s = relay.last_s
            life.output_tokens = relay.tokens
            error = problem_of(Role.DECODE, 200, relay.error, life.path)
            if error is not None:
                raise error
            if relay.aborted or not relay.complete:
                reason = "aborted" if relay.aborted else "stream_incomplete"
                raise LegError(Role.DECODE, reason, "the decode server broke the stream off")
        except LegError as error:
            if not relay.started:
                raise
            life.last_s = relay.last_s
            life.output_tokens = relay.tokens
            shutting = error.reason == "shut_down"
            error.__traceback__ = None  # see Router._serve
            outcome = Outcome.SHUT_DOWN if shutting else Outcome.ENGINE_FAILED
            if error.late:
                outcome = Outcome.EXPIRED
            life.end(outcome, 200, error.reason)
            self._registry.attempt_failed(life.pair, error)
            await relay.break_off(error_document(502, error.reason, str(error)))
            assert relay.response is not None
            return relay.response
        finally:
            if late is not None:
                late.cancel()
        self._completed(life, pair, relay.prompt_tokens)
        await relay.finish()
        assert relay.response is not None
        return relay.response

    def _limit(self, life: RequestContext, pair: Pair) -> asyncio.TimerHandle:
        """From here on a request that takes too long ends with an error event, not with a reset:
        the pair fails then, and every write is bounded."""
        assert life.limit is not None
        life.limit.reschedule(None)
        limit_s = self._timeouts.request_timeout_s
        error = LegError(Role.DECODE, "request_timeout", "the request took too long")
        left_s = life.received_s + limit_s - time.monotonic()
        return asyncio.get_running_loop().call_later(max(left_s, 0.0), pair.fail, error)

    def _completed(self, life: RequestContext, pair: Pair, prompt_tokens: int) -> None:
        life.end(Outcome.COMPLETED, 200)
        self._registry.succeeded(pair.prefill, pair.decode)
        counted = life.counted
        if counted is not None and prompt_tokens and life.intake and life.intake.sequences == 1:
            self._counter.observe(counted, prompt_tokens)
            if not counted.exact:
                label = self._metrics.model(counted.model)
                self._metrics.token_estimate.labels(label).observe(counted.tokens / prompt_tokens)


def _merged(prefill: bytes, decode: bytes) -> bytes:
    try:
        return relays.merge_logprobs(prefill, decode)
    except (ValueError, TypeError, AttributeError):
        raise LegError(Role.PREFILL, "garbage", "the servers' logprobs do not fit") from None
