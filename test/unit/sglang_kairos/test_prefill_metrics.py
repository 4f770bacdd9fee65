"""Figures of /server_info in /metrics."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from sglang.srt.kairos.prefill.planner import PrefillPlanner
from sglang.srt.kairos.prometheus import EngineMetricsExporter, engine_metrics
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.metrics import ENGINE_METRICS, figure
from support.fake_scheduler import FakeMetricsCollector, FakeMetricsReporter, FakeScheduler


def test_every_prefill_metric_has_its_figure() -> None:
    planner = PrefillPlanner(load_profile("tiny-fast"), FakeScheduler("prefill"), SharedClock(1))
    state = {"planner": planner.snapshot()}
    for metric in ENGINE_METRICS:
        if metric.path[0] == "planner":
            assert figure(state, metric.path) is not None, metric.name


def test_names_are_distinct_and_explained() -> None:
    assert len({metric.name for metric in ENGINE_METRICS}) == len(ENGINE_METRICS)
    assert all(metric.help.endswith(".") for metric in ENGINE_METRICS)


def test_figures_are_copied_and_counters_only_grow() -> None:
    state: dict[str, object] = {"invalid_slos": 2, "planner": {"preemptions": 3, "preempted": 1}}
    registry = CollectorRegistry()
    metrics = EngineMetricsExporter(lambda: state, {"model_name": "m", "tp_rank": 0}, registry)
    labels = {"model_name": "m", "tp_rank": "0"}

    def value(name: str) -> float | None:
        return registry.get_sample_value(name, labels)

    metrics.update()
    assert value("kairos:prefill_preemptions_total") == 3
    assert value("kairos:prefill_preempted") == 1
    state["planner"] = {"preemptions": 5, "preempted": 0}
    metrics.update()
    assert value("kairos:prefill_preempted") == 1, "once a second"
    metrics.update(force=True)
    assert (value("kairos:prefill_preemptions_total"), value("kairos:prefill_preempted")) == (5, 0)
    assert value("kairos:invalid_slos_total") == 2
    assert b"kairos:decode" not in generate_latest(registry), "this server has none of it"


def test_no_metrics_where_upstream_has_none() -> None:
    assert engine_metrics(FakeScheduler("prefill"), dict) is None


def test_only_ranks_that_upstream_reports_have_metrics() -> None:
    """Ranks count the same requests: figures of all of them would add up to a multiple."""
    scheduler = FakeScheduler("prefill")
    scheduler.metrics_reporter = FakeMetricsReporter(
        FakeMetricsCollector(), current_scheduler_metrics_enabled=False
    )
    assert engine_metrics(scheduler, dict) is None


def test_only_numbers_are_figures() -> None:
    state = {"planner": "mixed chunks", "decode": None, "on": True}
    assert figure(state, ("planner", "preemptions")) is None
    assert figure(state, ("decode", "steps")) is None
    assert figure(state, ("on",)) is None
