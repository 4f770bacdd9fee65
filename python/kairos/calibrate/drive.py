"""Sends the requests of one point and stamps their tokens."""

import asyncio
import gc
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import orjson
import uvloop

from kairos.replay.client.api import GenerateApi
from kairos.replay.client.exchange import Exchange, named
from kairos.replay.client.record import RequestOutcome
from kairos.replay.client.target import Endpoint
from kairos.replay.plan.plan import PlannedRequest
from kairos.replay.plan.prompts import Prompts
from kairos.slo import TPOT_RANGE_MS, TTFT_RANGE_MS, Slo
from kairos.workload.trace import TraceRequest

VOCABULARY = 1024
"""Token ids are below this: in the vocabulary of any model."""
_LOOK_S = 0.02


class DriveError(Exception):
    """The servers did not do what a point needs; one line that says what instead."""


@dataclass(frozen=True, slots=True)
class CalibrationPrompt:
    """Token ids by length and name: equal parts have equal ids, different names share nothing.

    Attributes:
        parts: (tokens, name) one behind the other.
    """

    parts: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Tokens."""
        return sum(tokens for tokens, _ in self.parts)


class TimedAnswer(NamedTuple):
    """Attributes:
    sent_s: monotonic time at which the request left.
    times_s: and at which its tokens arrived.
    cached_tokens: prefix hit that the server reports, None if it does not.
    """

    sent_s: float
    times_s: Sequence[float]
    cached_tokens: int | None


class Driver(Protocol):
    """Something that generates."""

    def play(
        self,
        prompts: Sequence[CalibrationPrompt],
        output_tokens: int,
        limit_s: float,
        together: int | None = None,
    ) -> list[TimedAnswer]:
        """Send all of `prompts` at once, wait for their answers.

        Args:
            limit_s: seconds after which it is given up.
            together: hang up as soon as every request has got so many tokens since the last one
                got its first. None waits for all `output_tokens`.

        Raises:
            DriveError: a request failed, or the time is over.
        """


def _interrupted(error: BaseException | None) -> bool:
    """Whether `error` came up while a KeyboardInterrupt was being handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class HttpDriver:
    """Real servers, through SGLang's `/generate` with token ids.

    Args:
        endpoints: one server, or prefill and decode.
        send_slo: say that there is no hurry, to servers that would schedule by it.
        seed: of all token ids. Runs with different ones find nothing of each other in the cache.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, send_slo: bool, seed: int) -> None:
        self._endpoints = tuple(endpoints)
        self._send_slo = send_slo
        self._prompts = Prompts(VOCABULARY, seed)
        self._run_id = f"calibrate-{seed:x}"
        self._count = 0

    def play(
        self,
        prompts: Sequence[CalibrationPrompt],
        output_tokens: int,
        limit_s: float,
        together: int | None = None,
    ) -> list[TimedAnswer]:
        bodies = [self._prepared(prompt, output_tokens) for prompt in prompts]
        gc.disable()  # a collection would stamp tokens late
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(self._play(bodies, limit_s, together))
        except RuntimeError as error:
            # Ctrl-C while the loop was being closed, which asyncio answers with other errors.
            if _interrupted(error):
                raise KeyboardInterrupt from error
            raise
        finally:
            gc.enable()

    def _prepared(
        self, prompt: CalibrationPrompt, output_tokens: int
    ) -> tuple[PlannedRequest, str, bytes]:
        """Written before the clock starts: a long prompt takes milliseconds."""
        self._count += 1
        request = TraceRequest(0.0, prompt.length, output_tokens)
        planned = PlannedRequest(self._count, request, 0, Slo(TTFT_RANGE_MS[1], TPOT_RANGE_MS[1]))
        ids: list[int] = []
        for tokens, name in prompt.parts:
            ids += self._prompts.token_ids(TraceRequest(0.0, tokens, 1), name).tolist()
        rid = f"{self._run_id}-{self._count:06d}"
        body = GenerateApi().body(planned, rid, orjson.dumps(ids), self._endpoints, self._send_slo)
        return planned, rid, body

    async def _play(
        self,
        requests: Sequence[tuple[PlannedRequest, str, bytes]],
        limit_s: float,
        together: int | None,
    ) -> list[TimedAnswer]:
        api = GenerateApi()
        exchanges = [
            Exchange(planned, rid, time.monotonic(), self._endpoints, api)
            for planned, rid, _ in requests
        ]
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(exchange.dial() for exchange in exchanges))
                for exchange, (_, _, body) in zip(exchanges, requests, strict=True):
                    exchange.send(body, self._send_slo)
                tasks = [asyncio.create_task(_ended_well(exchange)) for exchange in exchanges]
                await _all_or_enough(tasks, exchanges, together)
        except TimeoutError:
            raise DriveError(f"no end after {limit_s:.0f} s") from None
        except OSError as error:
            raise DriveError(named(error)) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for exchange in exchanges:
                exchange.close()
        return [
            TimedAnswer(exchange.sent_s, exchange.stream.times, exchange.stream.cached_tokens)
            for exchange in exchanges
        ]


async def _ended_well(exchange: Exchange) -> None:
    outcome, reason = await exchange.answer()
    if outcome is not RequestOutcome.OK:
        raise DriveError(f"{outcome.value}: {' '.join(reason.split())}")


async def _all_or_enough(
    tasks: Sequence[asyncio.Task[None]], exchanges: Sequence[Exchange], together: int | None
) -> None:
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(
            pending,
            timeout=None if together is None else _LOOK_S,
            return_when=asyncio.FIRST_EXCEPTION,
        )
        for task in done:
            task.result()
        if together is not None and shared_tokens([e.stream.times for e in exchanges]) >= together:
            return


def shared_tokens(times: Sequence[Sequence[float]]) -> int:
    """Tokens that every stream has got since the last of them began."""
    if not all(times):
        return 0
    began = max(own[0] for own in times)
    return min(len(own) - bisect_left(own, began) for own in times)
