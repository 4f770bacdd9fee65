"""Sending the requests of one point, and the arrival times of their tokens."""

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
"""Token ids are smaller than this, so every model's vocabulary contains them."""
_CHECK_S = 0.02


class DriveError(Exception):
    """The servers did not serve a point's requests as it needs; one line with the reason."""


@dataclass(frozen=True, slots=True)
class CalibrationPrompt:
    """A prompt as a sequence of named parts.

    Equal parts have equal token ids; parts of different names share no prefix.

    Attributes:
        parts: (tokens, name) of each part, in order.
    """

    parts: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Return the number of tokens."""
        return sum(tokens for tokens, _ in self.parts)


class TimedAnswer(NamedTuple):
    """Times of one answered request.

    Attributes:
        sent_s: monotonic time at which the request left.
        times_s: monotonic times at which its tokens arrived.
        cached_tokens: prefix hit that the server reports; None if it reports none.
    """

    sent_s: float
    times_s: Sequence[float]
    cached_tokens: int | None


class Driver(Protocol):
    """Servers that generate tokens."""

    def generate(
        self,
        prompts: Sequence[CalibrationPrompt],
        output_tokens: int,
        limit_s: float,
        enough_shared: int | None = None,
    ) -> list[TimedAnswer]:
        """Send all prompts at once and wait for their answers.

        Args:
            prompts: of the requests.
            output_tokens: number of tokens that each request generates.
            limit_s: seconds after which the requests fail.
            enough_shared: end when every request has received this number of tokens since the
                last one received its first. None waits for all `output_tokens`.

        Returns:
            Times of each request, in the order of `prompts`.

        Raises:
            DriveError: a request failed, or the time is over.
        """


def _interrupted(error: BaseException | None) -> bool:
    """Return whether `error` was raised while a KeyboardInterrupt was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class HttpDriver:
    """Real servers, through SGLang's `/generate` with token ids.

    Args:
        endpoints: one server, or a prefill and a decode server.
        send_slo: send the loosest SLO, to servers that schedule by it.
        seed: of all token ids. Runs with different seeds have no prefix in common.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, send_slo: bool, seed: int) -> None:
        self._endpoints = tuple(endpoints)
        self._send_slo = send_slo
        self._prompts = Prompts(VOCABULARY, seed)
        self._run_id = f"calibrate-{seed:x}"
        self._count = 0

    def generate(
        self,
        prompts: Sequence[CalibrationPrompt],
        output_tokens: int,
        limit_s: float,
        enough_shared: int | None = None,
    ) -> list[TimedAnswer]:
        """Send all prompts at once and wait for their answers; see `Driver`."""
        bodies = [self._prepared(prompt, output_tokens) for prompt in prompts]
        gc.disable()  # a collection would stamp tokens late
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(self._exchange(bodies, limit_s, enough_shared))
        except RuntimeError as error:
            # asyncio raises other errors for Ctrl-C while the loop is being closed.
            if _interrupted(error):
                raise KeyboardInterrupt from error
            raise
        finally:
            gc.enable()

    def _prepared(
        self, prompt: CalibrationPrompt, output_tokens: int
    ) -> tuple[PlannedRequest, str, bytes]:
        """Encode a request before the clock starts: a long prompt takes milliseconds."""
        self._count += 1
        request = TraceRequest(0.0, prompt.length, output_tokens)
        planned = PlannedRequest(self._count, request, 0, Slo(TTFT_RANGE_MS[1], TPOT_RANGE_MS[1]))
        ids: list[int] = []
        for tokens, name in prompt.parts:
            ids += self._prompts.token_ids(TraceRequest(0.0, tokens, 1), name).tolist()
        rid = f"{self._run_id}-{self._count:06d}"
        body = GenerateApi().body(planned, rid, orjson.dumps(ids), self._endpoints, self._send_slo)
        return planned, rid, body

    async def _exchange(
        self,
        requests: Sequence[tuple[PlannedRequest, str, bytes]],
        limit_s: float,
        enough_shared: int | None,
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
                await _all_or_enough(tasks, exchanges, enough_shared)
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
    tasks: Sequence[asyncio.Task[None]], exchanges: Sequence[Exchange], enough_shared: int | None
) -> None:
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(
            pending,
            timeout=None if enough_shared is None else _CHECK_S,
            return_when=asyncio.FIRST_EXCEPTION,
        )
        for task in done:
            task.result()
        if (
            enough_shared is not None
            and shared_tokens([e.stream.times for e in exchanges]) >= enough_shared
        ):
            return


def shared_tokens(times: Sequence[Sequence[float]]) -> int:
    """Return the tokens that every stream has received since the last of them began.

    Args:
        times: arrival times of each stream's tokens, in monotonic seconds.
    """
    if not all(times):
        return 0
    began = max(own[0] for own in times)
    return min(len(own) - bisect_left(own, began) for own in times)
