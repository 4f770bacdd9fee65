"""Kairos' figures in the /metrics of a server that runs with --enable-metrics."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sglang.srt.kairos.upstream import Scheduler

from kairos.metrics import ENGINE_METRICS, EngineMetric, figure

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_EVERY_S = 1.0


class EngineMetricsExporter:
    """Copies figures of /server_info into Prometheus metrics, once a second at most."""

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, object]],
        labels: Mapping[str, object],
        registry: "CollectorRegistry | None" = None,
    ) -> None:
        """Register the metrics of which this server has the figure.

        Args:
            snapshot: returns the `kairos` object of /server_info.
            labels: upstream's labels of this scheduler.
            registry: None is the client library's default one, which upstream serves.
        """
        # Upstream sets the folder of its multiprocess mode first; the library reads it at import.
        from prometheus_client import REGISTRY, Counter, Gauge

        self._snapshot = snapshot
        self._updated_s = -_EVERY_S
        state = snapshot()
        values = {name: str(value) for name, value in labels.items()}
        registry = registry or REGISTRY
        self._gauges: list[tuple[EngineMetric, Gauge]] = []
        self._counters: list[tuple[EngineMetric, Counter]] = []
        for metric in ENGINE_METRICS:
            if figure(state, metric.path) is None:
                continue
            if metric.kind == "gauge":
                gauge = Gauge(
                    metric.name,
                    metric.help,
                    list(values),
                    registry=registry,
                    multiprocess_mode="mostrecent",
                )
                self._gauges.append((metric, gauge.labels(**values)))
            else:
                counter = Counter(metric.name, metric.help, list(values), registry=registry)
                self._counters.append((metric, counter.labels(**values)))
        self._counted = dict.fromkeys((metric.name for metric, _ in self._counters), 0.0)

    def update(self, force: bool = False) -> None:
        """Copy the figures after a batch, unless that was done less than a second ago.

        Args:
            force: copy them in any case.
        """
        now = time.monotonic()
        if now - self._updated_s < _EVERY_S and not force:
            return
        self._updated_s = now
        state = self._snapshot()
        for metric, gauge in self._gauges:
            gauge.set(figure(state, metric.path) or 0.0)
        for metric, counter in self._counters:
            value = figure(state, metric.path) or 0.0
            counter.inc(max(0.0, value - self._counted[metric.name]))
            self._counted[metric.name] = value


def engine_metrics(
    scheduler: Scheduler, snapshot: Callable[[], Mapping[str, object]]
) -> EngineMetricsExporter | None:
    """Return the metrics of a scheduler; None where upstream collects none.

    Tensor-parallel ranks count the same requests. Upstream reports those of the first rank, or of
    every rank under --enable-metrics-for-all-schedulers, and so does Kairos.
    """
    reporter = scheduler.metrics_reporter
    collector = reporter.metrics_collector
    if collector is None or not reporter.current_scheduler_metrics_enabled:
        return None
    return EngineMetricsExporter(snapshot, collector.labels)
