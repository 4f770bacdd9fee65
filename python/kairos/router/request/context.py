"""What is known of one request: a record for each stage of its way."""

import asyncio
import time
from collections.abc import Mapping

import msgspec
from aiohttp import web

from kairos.router.edge.tenant import Tenant
from kairos.router.observe.access_record import AccessRecord
from kairos.router.observe.tracing import RequestTrace
from kairos.router.request.outcome import Outcome
from kairos.router.request.parsing import ParsedRequest
from kairos.router.request.token_counter import PromptTokens
from kairos.router.upstream.attempt import Attempt
from kairos.slo import Slo

_MAX_CLIENT_ID = 128


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The beginning of a request.

    Attributes:
        id: its number in this router.
        client_id: the client's own name for it (X-Request-Id); empty where it has none.
        extra: header lines of its answer.
        at_s: monotonic seconds.
    """

    id: int
    path: str
    peer: str | None
    client_id: str
    extra: Mapping[str, str]
    at_s: float

    @classmethod
    def of(
        cls, id: int, request: web.BaseRequest, path: str, extra: Mapping[str, str]
    ) -> "Receipt":
        """Begin with the request's header lines."""
        client_id = request.headers.get("X-Request-Id", "")
        if not (client_id.isascii() and client_id.isprintable()):
            client_id = ""
        if len(client_id) > _MAX_CLIENT_ID:
            client_id = ""
        return cls(id, path, request.remote, client_id, extra, time.monotonic())


class Understood(msgspec.Struct, frozen=True, gc=False):
    """A request that was read.

    Attributes:
        prompt: its tokens, counted or estimated.
        slo: what applies to it; the queue may loosen it.
        arrival_s: its receipt less the time that it says it has spent already.
        digest: of its body.
    """

    parsed: ParsedRequest
    prompt: PromptTokens
    slo: Slo
    arrival_s: float
    digest: int


class Admission(msgspec.Struct, frozen=True, gc=False):
    """What the queue said.

    Attributes:
        predicted_ttft_s: from receipt; NaN where nothing is known.
    """

    slo: Slo
    best_effort: bool
    predicted_ttft_s: float


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the client got.

    Attributes:
        first_s, last_s: when the first and the last bytes of content came, monotonic seconds; 0
            before.
        output_tokens: None where not known.
    """

    first_s: float = 0.0
    last_s: float = 0.0
    output_tokens: int | None = None


class End(msgspec.Struct, frozen=True, gc=False):
    """How a request ended."""

    outcome: Outcome
    status: int
    reason: str = ""


class RequestContext:
    """One request and the stages behind it; a stage that it did not reach is None.

    Attributes:
        trace: None where nothing is traced.
        limit: of the whole request, as long as it can be answered with a status.
        task: the task that serves it.
        stopped: the router stopped and cancelled the task.
        counted: its tenant's gate counts it.
        dispatched_s: when it last got a pair.
        answering: the client has got the first bytes: there is no other attempt.
    """

    __slots__ = (
        "admission",
        "answer",
        "answering",
        "attempt",
        "attempts",
        "counted",
        "dispatched_s",
        "end",
        "limit",
        "receipt",
        "rid",
        "stopped",
        "task",
        "tenant",
        "trace",
        "understood",
    )

    def __init__(
        self, receipt: Receipt, rid: str, limit: asyncio.Timeout, trace: RequestTrace | None
    ) -> None:
        self.receipt = receipt
        self.rid = rid
        self.limit = limit
        self.trace = trace
        self.task = asyncio.current_task()
        self.stopped = False
        self.tenant: Tenant | None = None
        self.counted = False
        self.understood: Understood | None = None
        self.admission: Admission | None = None
        self.dispatched_s: float | None = None
        self.attempts = 0
        self.attempt: Attempt | None = None
        self.answering = False
        self.answer = Answer()
        self.end: End | None = None

    @property
    def slo(self) -> Slo | None:
        """What applies to it; None before it was read."""
        if self.admission is not None:
            return self.admission.slo
        return self.understood.slo if self.understood else None

    def ends(self, outcome: Outcome, status: int, reason: str = "") -> None:
        """Settle how it ended; the first call counts."""
        if self.end is None:
            self.end = End(outcome, status, reason)

    def record(self, now_s: float) -> AccessRecord:
        """For log and metrics, after its end."""
        end = self.end or End(Outcome.CLIENT_GONE, 499, "disconnected")
        read, queued, answer, attempt = self.understood, self.admission, self.answer, self.attempt
        received_s = self.receipt.at_s
        stream = read.parsed.stream if read else False
        queue_until_s = self.dispatched_s or (now_s if queued else None)
        tokens = answer.output_tokens
        tpot_s = None
        if tokens is not None and tokens > 1 and answer.last_s > answer.first_s and stream:
            tpot_s = (answer.last_s - answer.first_s) / (tokens - 1)
        # A whole answer has no first token that the client could see.
        ttft_s = answer.first_s - read.arrival_s if read and stream and answer.first_s else None
        return AccessRecord(
            outcome=end.outcome,
            status=end.status,
            reason=end.reason,
            path=self.receipt.path,
            request_id=self.rid,
            client_request_id=self.receipt.client_id or None,
            duration_s=now_s - received_s,
            tenant=self.tenant.name if self.tenant else None,
            slo=self.slo,
            model=read.parsed.model if read else None,
            stream=stream,
            best_effort=queued.best_effort if queued else False,
            sequences=read.parsed.sequences if read else 1,
            body_bytes=read.parsed.size if read else 0,
            input_tokens=read.prompt.tokens if read else None,
            output_tokens=tokens,
            queue_s=queue_until_s - received_s if queue_until_s is not None else None,
            predicted_ttft_s=queued.predicted_ttft_s if queued else None,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            attempts=self.attempts,
            prefill=attempt.prefill.key if attempt else None,
            decode=attempt.decode.key if attempt else None,
            trace_id=self.trace.trace_id if self.trace else None,
            peer=self.receipt.peer,
        )
