"""Trace context: through both legs, with and without an SDK."""

import subprocess
import sys

import pytest
from multidict import CIMultiDict

from kairos.router.observe import tracing
from kairos.router.observe.access_record import AccessRecord
from kairos.router.request.outcome import Outcome

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def test_without_an_sdk_the_clients_context_reaches_both_legs() -> None:
    headers = CIMultiDict({"Traceparent": PARENT, "Tracestate": "a=1", "Baggage": "x=y"})
    request = tracing.begin(headers, "/generate")
    assert request.trace_id == TRACE
    for name in ("prefill", "decode"):
        leg = request.leg(name, "h:1", 1)
        assert leg.headers == {"traceparent": PARENT, "tracestate": "a=1"}
        leg.end("lost")
    request.end(
        AccessRecord(outcome=Outcome.COMPLETED, status=200, path="/", request_id="", duration_s=1)
    )


@pytest.mark.parametrize("header", [None, "", "00-0-0-0", "x" * 10_000, f"00-{'0' * 32}-1-01"])
def test_without_a_context_or_with_a_bad_one_nothing_is_sent(header: str | None) -> None:
    request = tracing.begin({} if header is None else {"traceparent": header}, "/generate")
    assert request.trace_id is None
    assert request.leg("decode", "h:1", 1).headers == {}


# In a process of its own: a tracer provider can be set once only.
WITH_SDK = f"""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from kairos.router.observe import tracing
from kairos.router.request.outcome import Outcome
from kairos.router.observe.access_record import AccessRecord

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)

request = tracing.begin({{"traceparent": "{PARENT}"}}, "/generate")
legs = [request.leg(name, "h:1", 2) for name in ("prefill", "decode")]
sent = [leg.headers["traceparent"].split("-") for leg in legs]
assert {{trace_id for _, trace_id, _, _ in sent}} == {{"{TRACE}"}}
legs[0].end("refused")
legs[1].end()
request.end(AccessRecord(outcome=Outcome.ENGINE_FAILED, status=502, path="/generate",
                       request_id="r", duration_s=1, reason="refused", tenant="a"))
prefill, decode, root = spans.get_finished_spans()
assert [f"{{s.context.span_id:016x}}" for s in (prefill, decode)] == [s[2] for s in sent]
assert prefill.parent.span_id == decode.parent.span_id == root.context.span_id
assert f"{{root.parent.span_id:016x}}" == "b7ad6b7169203331"
assert (prefill.status.status_code.name, decode.status.status_code.name) == ("ERROR", "UNSET")
assert root.status.description == "refused"
assert root.attributes["kairos.outcome"] == "engine_failed"
assert root.attributes["kairos.tenant"] == "a"
assert prefill.attributes["server.address"] == "h:1"
"""


def test_with_an_sdk_legs_are_children_of_the_request() -> None:
    done = subprocess.run([sys.executable, "-c", WITH_SDK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_spans_without_an_exporter_warns(monkeypatch, caplog) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    tracing.configure()
    assert "install opentelemetry-sdk" in caplog.text
