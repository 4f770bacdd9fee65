"""Every metric of the router: name, help, labels, buckets, in one place.

Label values that others choose (tenants, classes, models, addresses) are capped: beyond a number
of distinct ones they count as "other", so that no client can fill the memory with them.
"""

import math
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from kairos import __version__
from kairos.router.observe.access_record import AccessRecord
from kairos.router.text import clean

PREFIX = "kairos_router"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OTHER = "other"

# Seconds. TTFT objectives lie between 0.1 s and minutes; TPOT between 5 ms and 1 s.
TTFT_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120)
TPOT_BUCKETS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)
QUEUE_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
DURATION_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
# Actual over objective, and predicted over actual: 1 is a bound of its own.
RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 3, 5, 10)

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class Capped:
    """Passes the first `limit` distinct values, then answers "other" for new ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str | None) -> str:
        if value is None:
            return "none"
        if value in self._seen:
            return value
        value = clean(value, 100)
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(value)
        return value

    def forget(self, value: str) -> None:
        """Make room: `value` is not used any more."""
        self._seen.discard(value)


class Known:
    """Passes values that the workers name; every other one becomes "other".

    Names that clients invent thus take no place in the metrics.

    Attributes:
        names: models that the workers in use serve.
    """

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()

    def __call__(self, value: str | None) -> str:
        if not value:
            return "none"
        return clean(value, 100) if value in self.names else OTHER


class RouterMetrics:
    """The metrics of one router, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tenant = Capped(200)
        self.slo_class = Capped(64)
        self.model = Known()
        self.worker = Capped(256)
        self.reason = Capped(64)
        self._children: dict[tuple[object, tuple[str, ...]], Any] = {}
        build = Info(f"{PREFIX}_build", "Version of the router.", registry=self.registry)
        build.info({"version": __version__})

        self.requests = self._counter(
            "requests", "Requests that ended, by outcome.", "tenant", "slo_class", "outcome"
        )
        self.rejected = self._counter("rejected", "Refused requests, by reason.", "reason")
        self.slo_met = self._counter(
            "slo_met", "Requests that met an objective (ttft, tpot, both).",
            "slo_class", "objective",
        )  # fmt: skip
        self.slo_missed = self._counter(
            "slo_missed", "Requests that missed an objective (ttft, tpot, both).",
            "slo_class", "objective",
        )  # fmt: skip
        self.ttft = self._histogram(
            "ttft_seconds", "Arrival to first token, as sent.", TTFT_BUCKETS, "slo_class"
        )
        self.tpot = self._histogram(
            "tpot_seconds", "(last - first token) / (n - 1).", TPOT_BUCKETS, "slo_class"
        )
        self.ttft_over_slo = self._histogram(
            "ttft_over_slo_ratio", "TTFT over its objective.", RATIO_BUCKETS, "slo_class"
        )
        self.tpot_over_slo = self._histogram(
            "tpot_over_slo_ratio", "TPOT over its objective.", RATIO_BUCKETS, "slo_class"
        )
        self.duration = self._histogram(
            "request_duration_seconds", "Receipt to end.", DURATION_BUCKETS, "outcome"
        )
        self.queue_wait = self._histogram(
            "queue_wait_seconds",
            "Receipt to dispatch, or to the end of what was never dispatched.",
            QUEUE_BUCKETS,
            "slo_class",
        )
        self.input_tokens = self._counter("input_tokens", "Prompt tokens.", "tenant", "model")
        self.output_tokens = self._counter("output_tokens", "Tokens sent.", "tenant", "model")

        self.queued_requests = self._gauge("queued_requests", "Requests that wait for a pair.")
        self.queued_sequences = self._gauge("queued_sequences", "Sequences that wait.")
        self.queued_bytes = self._gauge("queued_bytes", "Memory of the bodies that wait.")
        self.reading_bytes = self._gauge("reading_bytes", "Memory of bodies not queued yet.")
        self.oldest_wait = self._gauge("oldest_wait_seconds", "Age of the oldest that waits.")
        self.running = self._gauge("running_requests", "Requests with a pair.")
        self.live_rooms = self._gauge("live_rooms", "Bootstrap rooms in use.")
        self.connections = self._gauge("client_connections", "Open client connections.")

        self.workers = self._gauge("workers", "Servers, by state.", "role", "state")
        self.breaker = self._gauge(
            "breaker_state", "0 closed, 1 half open, 2 open.", "role", "worker"
        )
        self.worker_failures = self._counter(
            "worker_failures", "Failures that count for the breaker.", "role", "worker", "reason"
        )
        self.worker_restarts = self._counter(
            "worker_restarts", "Restarts seen under the same address.", "role", "worker"
        )
        self.telemetry_age = self._gauge(
            "telemetry_age_seconds", "Age of what is known of a server's load.", "role", "worker"
        )
        self.backlog = self._gauge(
            "predicted_backlog_seconds", "Predicted work of a server.", "role", "worker"
        )

        self.pair_failures = self._counter(
            "pair_failures", "Attempts that failed, by the leg that failed first.", "leg", "reason"
        )
        self.retries = self._counter("retries", "Further attempts.", "reason")
        self.aborts = self._counter("aborts", "Aborts sent to a server.", "leg", "reason")
        self.aborts_damped = self._counter("aborts_damped", "Aborts delayed to damp a storm.")
        self.abort_wait = self._histogram(
            "abort_confirm_seconds", "Abort to the leg's own end.", QUEUE_BUCKETS, "leg"
        )

        self.prediction = self._histogram(
            "predicted_over_actual_ratio", "Predictions over what happened.",
            RATIO_BUCKETS, "stage",
        )  # fmt: skip
        self.token_estimate = self._histogram(
            "token_estimate_over_actual_ratio", "Estimated over counted prompt tokens.",
            RATIO_BUCKETS, "model",
        )  # fmt: skip
        self.prefix_hits = self._counter(
            "prefix_hit_tokens", "Prompt tokens expected in the chosen server's cache."
        )
        self.loop_lag = self._gauge("loop_lag_seconds", "How late the event loop runs.")
        self.log_dropped = self._counter("access_log_dropped", "Log lines that were dropped.")
        self.reloads = self._counter("reloads", "Files read again (ok, failed).", "what", "result")

    def ended(self, end: AccessRecord) -> None:
        """Count a request that ended; once per request."""
        slo_class = self.slo_class(end.slo.slo_class if end.slo else None)
        tenant, model, outcome = self.tenant(end.tenant), self.model(end.model), end.outcome.value
        self._child(self.requests, tenant, slo_class, outcome).inc()
        self._child(self.duration, outcome).observe(end.duration_s)
        if end.reason and outcome.startswith(("rejected", "unavailable", "invalid")):
            self._child(self.rejected, self.reason(end.reason)).inc()
        if end.queue_s is not None:
            self._child(self.queue_wait, slo_class).observe(end.queue_s)
        if end.input_tokens:
            self._child(self.input_tokens, tenant, model).inc(end.input_tokens)
        if end.output_tokens:
            self._child(self.output_tokens, tenant, model).inc(end.output_tokens)
        if end.ttft_s is not None:
            self._child(self.ttft, slo_class).observe(end.ttft_s)
            if end.slo and math.isfinite(end.slo.ttft_ms):
                self._child(self.ttft_over_slo, slo_class).observe(end.ttft_s / end.slo.ttft_s)
            predicted_s = end.predicted_ttft_s
            if end.stream and predicted_s is not None and math.isfinite(predicted_s):
                self._child(self.prediction, "ttft").observe(predicted_s / max(end.ttft_s, 1e-6))
        if end.tpot_s is not None:
            self._child(self.tpot, slo_class).observe(end.tpot_s)
            if end.slo and math.isfinite(end.slo.tpot_ms):
                self._child(self.tpot_over_slo, slo_class).observe(end.tpot_s / end.slo.tpot_s)
        known = {"ttft": end.ttft_met, "tpot": end.tpot_met}
        scored = {objective: met for objective, met in known.items() if met is not None}
        if scored:
            scored["both"] = all(scored.values())
        for objective, met in scored.items():
            self._child(self.slo_met if met else self.slo_missed, slo_class, objective).inc()

    def refused(self, reason: str) -> None:
        """Count what never became a request."""
        self.rejected.labels(self.reason(reason)).inc()

    def forget_worker(self, role: str, worker: str) -> None:
        """Drop what is counted of a server that was removed: names of others come and go."""
        of_server = (self.breaker, self.telemetry_age, self.backlog, self.worker_failures)
        for metric in (*of_server, self.worker_restarts):
            metric.remove_by_labels({"role": role, "worker": worker})
        self.worker.forget(worker)

    def exposition(self) -> bytes:
        """What /metrics answers, of type `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _child(self, metric: Metric, *labels: str) -> Metric:
        """The series of these labels. `labels` of the library takes a lock and microseconds."""
        child: Metric | None = self._children.get((metric, labels))
        if child is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        return child

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=self.registry)
