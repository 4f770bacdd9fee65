"""What happens to one request, noted down until its one end."""

import asyncio
import time

from aiohttp import web

from kairos.router.edge.tenant import Tenant
from kairos.router.observe.request_record import RequestRecord
from kairos.router.observe.tracing import RequestTrace
from kairos.router.request.outcome import Outcome
from kairos.router.request.parsing import ParsedRequest
from kairos.router.request.token_counter import PromptTokens
from kairos.router.upstream.attempt import Pair
from kairos.slo import Slo


class RequestContext:
    """One request from its receipt to its end. Times are monotonic seconds.

    Attributes:
        entered: its tenant's gate counts it.
        task: which serves it.
        limit: of the whole request, as long as it can be answered with a status.
        stopped: the router stopped and ended it.
    """

    __slots__ = (
        "arrival_s",
        "attempts",
        "best_effort",
        "counted",
        "dispatched_s",
        "entered",
        "first_s",
        "id",
        "intake",
        "last_s",
        "limit",
        "offered",
        "outcome",
        "output_tokens",
        "pair",
        "path",
        "peer",
        "predicted_ttft_s",
        "reason",
        "received_s",
        "rid",
        "sent",
        "slo",
        "status",
        "stopped",
        "task",
        "tenant",
        "trace",
    )

    def __init__(self, id: int, request: web.BaseRequest, trace: RequestTrace | None) -> None:
        self.id = id
        self.path = request.path
        self.peer = request.remote
        self.trace = trace
        self.received_s = self.arrival_s = time.monotonic()
        self.dispatched_s: float | None = None
        self.first_s = 0.0
        self.last_s = 0.0
        self.tenant: Tenant | None = None
        self.entered = False
        self.task = asyncio.current_task()
        self.limit: asyncio.Timeout | None = None
        self.stopped = False
        self.intake: ParsedRequest | None = None
        self.counted: PromptTokens | None = None
        self.slo: Slo | None = None
        self.best_effort = False
        self.predicted_ttft_s: float | None = None  # from receipt
        self.offered = False
        self.attempts = 0
        self.pair: Pair | None = None
        self.rid = ""
        self.sent = False
        self.output_tokens: int | None = None
        self.outcome: Outcome | None = None
        self.status = 0
        self.reason = ""

    def end(self, outcome: Outcome, status: int, reason: str = "") -> None:
        """Settle how it ended; the first one counts."""
        if self.outcome is None:
            self.outcome, self.status, self.reason = outcome, status, reason

    def record(self, now_s: float) -> RequestRecord:
        """For log and metrics, after its end."""
        assert self.outcome is not None
        intake, pair = self.intake, self.pair
        queue_until_s = self.dispatched_s or (now_s if self.offered else None)
        tokens = self.output_tokens
        tpot_s = None
        if (
            tokens is not None
            and tokens > 1
            and self.last_s > self.first_s
            and (intake is not None and intake.stream)
        ):
            tpot_s = (self.last_s - self.first_s) / (tokens - 1)
        return RequestRecord(
            outcome=self.outcome,
            status=self.status,
            reason=self.reason,
            path=self.path,
            request_id=self.rid,
            duration_s=now_s - self.received_s,
            tenant=self.tenant.name if self.tenant else None,
            slo=self.slo,
            model=intake.model if intake else None,
            stream=intake.stream if intake else False,
            best_effort=self.best_effort,
            sequences=intake.sequences if intake else 1,
            body_bytes=intake.size if intake else 0,
            input_tokens=self.counted.tokens if self.counted else None,
            output_tokens=tokens,
            queue_s=queue_until_s - self.received_s if queue_until_s is not None else None,
            predicted_ttft_s=self.predicted_ttft_s,
            ttft_s=self.first_s - self.arrival_s if self.first_s else None,
            tpot_s=tpot_s,
            attempts=self.attempts,
            prefill=pair.prefill.key if pair else None,
            decode=pair.decode.key if pair else None,
            trace_id=self.trace.trace_id if self.trace else None,
            peer=self.peer,
        )
