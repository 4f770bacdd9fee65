"""W3C trace context from the client through both legs, and spans where an SDK records them.

Without an SDK nothing is recorded and the client's `traceparent` goes to the servers as it is.
With one, configured by its own means (`opentelemetry-instrument kairos-router ...`, or the
`OTEL_*` variables, see `configure`), a request is a span and each leg a child of it.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kairos.router.observe.access_record import AccessRecord
from kairos.router.request.outcome import Outcome

_log = logging.getLogger(__name__)

HEADERS = ("traceparent", "tracestate")

# Baggage is not passed on: clients would write into the servers' traces.
_propagator = TraceContextTextMapPropagator()
_NO_ERROR = (Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.INVALID, Outcome.UNAUTHORIZED)


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """The trace of one request."""

    span: Span
    context: Context

    @property
    def trace_id(self) -> str | None:
        """Hexadecimal; None where the client sent none and nothing is recorded."""
        context = self.span.get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else None

    def leg(self, name: str, server: str, attempt: int) -> "LegTrace":
        """Begin the span of one leg ("prefill", "decode") of one attempt at `host:port`."""
        tracer = trace.get_tracer("kairos.router")
        span = tracer.start_span(name, self.context, SpanKind.CLIENT)
        if span.is_recording():
            span.set_attributes({"server.address": server, "kairos.attempt": attempt})
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(span, self.context))
        return LegTrace(span, carrier)

    def end(self, end: AccessRecord) -> None:
        """End the span with what became of the request."""
        if not self.span.is_recording():
            return
        attributes = {
            "kairos.outcome": end.outcome.value,
            "http.response.status_code": end.status,
            "kairos.request_id": end.request_id,
            "kairos.attempts": end.attempts,
            "kairos.tenant": end.tenant,
            "kairos.slo_class": end.slo.slo_class if end.slo else None,
            "kairos.queue_s": end.queue_s,
            "kairos.ttft_s": end.ttft_s,
            "kairos.tpot_s": end.tpot_s,
            "kairos.input_tokens": end.input_tokens,
            "kairos.output_tokens": end.output_tokens,
        }
        for name, value in attributes.items():
            if value is not None:
                self.span.set_attribute(name, value)
        if end.outcome not in _NO_ERROR:
            self.span.set_status(Status(StatusCode.ERROR, end.reason))
        self.span.end()


@dataclass(frozen=True, slots=True)
class LegTrace:
    """The trace of one leg, and the header lines that tell the server of it, if there are any."""

    span: Span
    headers: Mapping[str, str]

    def end(self, error: str | None = None) -> None:
        """End the leg's span; `error` in few words."""
        if error is not None and self.span.is_recording():
            self.span.set_status(Status(StatusCode.ERROR, error))
        self.span.end()


def begin(headers: Mapping[str, str], path: str) -> RequestTrace:
    """Begin a request's trace, or join the one its headers name. A malformed one is ignored."""
    carrier = {name: headers[name] for name in HEADERS if name in headers}
    parent = _propagator.extract(carrier) if carrier else Context()
    span = trace.get_tracer("kairos.router").start_span(f"POST {path}", parent, SpanKind.SERVER)
    return RequestTrace(span, trace.set_span_in_context(span, parent))


def configure() -> None:
    """Record spans if the environment asks for it and the SDK and exporter are installed.

    `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` asks for it.
    """
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(os.environ.get(name) for name in names):
        return
    try:
        exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _log.warning(
            "no spans: %s; install opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http",
            error,
        )
        return
    provider = TracerProvider(resource=Resource.create({"service.name": "kairos-router"}))
    provider.add_span_processor(BatchSpanProcessor(exporter.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
