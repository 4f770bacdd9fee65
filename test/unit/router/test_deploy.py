"""What lies in deploy/ against what the router has: metric names, labels, flags, settings."""

import json
import re
from pathlib import Path

import pytest
import yaml

import kairos_patches
from kairos.router.cli import parse
from kairos.router.config.schema import settings_of
from kairos.router.config.settings import RouterConfig
from kairos.router.observe.metrics import RouterMetrics
from kairos.router.request.outcome import Outcome
from support.metric_names import sample_names

DEPLOY = Path(kairos_patches.__file__).parent.parent / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/kairos-router.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
# Labels that Prometheus adds, and those of histograms.
ADDED = {"instance", "job", "le"}

QUERIES = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
] + [
    (rule.get("alert") or rule["record"], rule["expr"])
    for group in ALERTS["groups"]
    for rule in group["rules"]
]


def labels() -> dict[str, set[str]]:
    """Labels of every sample name."""
    metrics = RouterMetrics()
    found = {}
    for collector in metrics.registry._collector_to_names:
        names = getattr(collector, "_labelnames", ())
        for family in collector.describe():
            known = set(names) | ({"version"} if family.type == "info" else set())
            for suffix in ("", "_total", "_bucket", "_sum", "_count", "_info"):
                found[family.name + suffix] = known
    return {name: known for name, known in found.items() if name in sample_names()}


LABELS = labels()


def test_all_metrics_are_known_here() -> None:
    assert set(LABELS) == sample_names()


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_every_query_names_metrics_and_labels_that_exist(title: str, query: str) -> None:
    names = re.findall(r"\bkairos_router_\w+", query)
    assert names or "kairos_router:" in query
    assert set(names) <= set(LABELS)
    for name, matchers in re.findall(r"\b(kairos_router_\w+)\{([^}]*)\}", query):
        used = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", matchers))
        assert used <= LABELS[name] | ADDED
    for grouped in re.findall(r"\b(?:by|on) \(([^)]+)\)", query):
        known = set().union(*(LABELS[name] for name in names)) if names else {"slo_class"}
        assert {label.strip() for label in grouped.split(",")} <= known | ADDED
    assert query.count("(") == query.count(")")


def test_every_metric_is_used_or_in_the_dashboard() -> None:
    text = " ".join(query for _, query in QUERIES)
    families = {family.name for family in RouterMetrics().registry.collect()}
    assert {name for name in families if name not in text} == set()


def test_outcomes_in_alerts_exist() -> None:
    text = " ".join(query for _, query in QUERIES)
    for values in re.findall(r"outcome=~?\"([^\"$]+)\"", text):
        assert set(values.split("|")) <= {outcome.value for outcome in Outcome}


def test_panels_have_distinct_ids_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_recorded_names_are_defined_where_they_are_used() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {name for rule in rules for name in re.findall(r"kairos_router:[\w:]+", rule["expr"])}
    assert used == recorded
    for rule in rules:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]


def test_the_settings_for_kubernetes_are_understood(tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes/router.yaml").read_text()))
    text = next(d for d in documents if d["kind"] == "ConfigMap")["data"]["router.yaml"]
    for name in ("keys.yaml", "admin.keys", "engine.key"):
        (tmp_path / name).touch()
    (tmp_path / "router.yaml").write_text(text.replace("/etc/kairos-keys", str(tmp_path)))
    config = parse(["--config", str(tmp_path / "router.yaml")])
    servers = list(yaml.safe_load_all((DEPLOY / "kubernetes/servers.yaml").read_text()))
    headless = {d["metadata"]["name"] for d in servers if d["kind"] == "Service"}
    assert {e.host for e in (*config.workers.prefill_dns, *config.workers.decode_dns)} == headless
    pod = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > config.timeouts.drain_timeout_s + 10
    container = pod["containers"][0]
    assert container["ports"][0]["containerPort"] == config.listen.port
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    # Compiled code is kept in a place that can be written to.
    cache = {entry["name"]: entry["value"] for entry in container["env"]}["NUMBA_CACHE_DIR"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "emptyDir" in volumes[mounts[str(Path(cache).parent)]]


def test_flags_in_the_service_exist() -> None:
    text = (DEPLOY / "systemd/kairos-router.service").read_text()
    groups = RouterConfig.groups().values()
    known = {setting.flag for group in groups for setting in settings_of(group).values()}
    assert set(re.findall(r"--[a-z-]+", text)) <= known | {"--config", "--check"}


def test_the_service_can_keep_compiled_code_and_read_its_keys() -> None:
    text = (DEPLOY / "systemd/kairos-router.service").read_text()
    settings = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    of = {name: [value for key, value in settings if key == name] for name, _ in settings}
    assert of["Environment"] == [f"NUMBA_CACHE_DIR=/var/cache/{of['CacheDirectory'][0]}"]
    handed = {value.partition(":")[0] for value in of["LoadCredential"]}
    named = re.findall(r"/run/credentials/kairos-router\.service/(\S+)", text)
    assert named
    assert set(named) <= handed


def test_where_nothing_can_be_kept_code_is_compiled_all_the_same(monkeypatch) -> None:
    from numba.core import caching

    from kairos.policy.compiled import compiled

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def double(x: int) -> int:
        return 2 * x

    assert compiled(double)(4) == 8
