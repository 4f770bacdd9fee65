"""One request on the wire: its body, its legs, its stream, its end."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson

from kairos.replay.plan import PlannedRequest
from kairos.replay.record import Outcome, Record, make_record
from kairos.replay.stream import StreamError, TokenStream
from kairos.replay.target import Leg


class Exchange:
    """Posts a request to its legs and stamps what comes back.

    Attributes:
        rid: id of the request.
        due: monotonic time at which it has to leave; all its times count from there.
    """

    def __init__(self, planned: PlannedRequest, rid: str, due: float) -> None:
        self.rid = rid
        self.due = due
        self._planned = planned
        self._sent: float | None = None
        self._stream = TokenStream(planned.request.output_tokens)

    async def run(
        self,
        session: aiohttp.ClientSession,
        legs: Sequence[Leg],
        prompt: bytes,
        *,
        send_slo: bool,
    ) -> tuple[Outcome, str]:
        """Send to all legs at once and read until the streaming one has ended.

        Args:
            session: made with `tracing()`.
            prompt: token ids as JSON.
            send_slo: put the SLO into custom_params.

        Returns:
            How it ended and why. Cancelling it closes the connections, which makes the servers
            abort the request.
        """
        body = self._body(legs, prompt, send_slo)
        reading = [asyncio.create_task(self._read(leg, body, session)) for leg in legs]
        try:
            await _first_end(reading, legs)
        except _HttpError as error:
            return Outcome.HTTP_ERROR, str(error)
        except StreamError as error:
            return Outcome.STREAM_ERROR, str(error)
        except (aiohttp.ClientError, OSError) as error:
            return Outcome.CONNECTION_ERROR, _named(error)
        except Exception as error:  # one bad request must not end the run
            return Outcome.INTERNAL_ERROR, _named(error)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        return self._verdict()

    def record(self, outcome: Outcome, reason: str) -> Record:
        """Account for what has been seen."""
        return make_record(
            self._planned,
            self.rid,
            outcome,
            reason=reason,
            send_lag_s=None if self._sent is None else self._sent - self.due,
            token_times_s=[t - self.due for t in self._stream.times],
            cached_tokens=self._stream.cached_tokens,
        )

    def mark_sent(self) -> None:
        """The headers are on the wire."""
        if self._sent is None:
            self._sent = time.monotonic()

    async def _read(self, leg: Leg, body: bytes, session: aiohttp.ClientSession) -> None:
        async with session.post(
            f"{leg.url}/generate",
            data=body,
            headers={"Content-Type": "application/json"},
            trace_request_ctx=self if leg.streams else None,
        ) as response:
            if response.status != 200:
                text = (await response.content.read(400)).decode("utf-8", "replace")
                raise _HttpError(f"{leg.name}: status {response.status}: {text.strip()}")
            async for data in response.content.iter_any():
                if leg.streams:
                    self._stream.feed(data, time.monotonic())
            if leg.streams:
                self._stream.close()

    def _body(self, legs: Sequence[Leg], prompt: bytes, send_slo: bool) -> bytes:
        sampling: dict[str, Any] = {
            "max_new_tokens": self._planned.request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        if send_slo:
            slo = self._planned.slo
            sampling["custom_params"] = {
                "kairos": {
                    "ttft_ms": slo.ttft_ms,
                    "tpot_ms": slo.tpot_ms,
                    "elapsed_ms": 1e3 * max(0.0, time.monotonic() - self.due),
                    "class": slo.slo_class,
                }
            }
        fields: dict[str, Any] = {"rid": self.rid, "stream": True, "sampling_params": sampling}
        if len(legs) > 1:
            fields["bootstrap_host"] = legs[0].bootstrap_host
            fields["bootstrap_port"] = legs[0].bootstrap_port
            fields["bootstrap_room"] = secrets.randbits(63)
        # The prompt is spliced in as text: encoding it again would cost a millisecond when due.
        return b"".join((orjson.dumps(fields)[:-1], b',"input_ids":', prompt, b"}"))

    def _verdict(self) -> tuple[Outcome, str]:
        """Judge a stream that ended without an error."""
        finish = self._stream.finish
        asked, got = self._planned.request.output_tokens, len(self._stream.times)
        if finish is not None and finish.get("type") == "abort":
            return Outcome.ABORTED, str(finish.get("message") or "no message")
        if got < asked:
            return Outcome.INCOMPLETE, f"{got} of {asked} tokens, finish reason {finish}"
        return Outcome.OK, ""


class _HttpError(Exception):
    pass


def tracing() -> aiohttp.TraceConfig:
    """Session hook that stamps the moment at which a request's headers are written."""

    async def sent(
        _session: aiohttp.ClientSession,
        context: SimpleNamespace,
        _params: aiohttp.TraceRequestHeadersSentParams,
    ) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.mark_sent()

    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(sent)
    return config


async def _first_end(reading: Sequence[asyncio.Task[None]], legs: Sequence[Leg]) -> None:
    """Return when the streaming leg has ended, raise when any leg has failed: with one leg of a
    pair gone, the other would wait for minutes."""
    pending = set(reading)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if any(leg.streams and task.done() for task, leg in zip(reading, legs, strict=True)):
            return


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
