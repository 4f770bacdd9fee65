"""The router's README against its code."""

import re
from pathlib import Path

import kairos.router
from kairos.router.config.schema import settings_of
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.keys import hash_key
from kairos.router.edge.openapi import document
from kairos.router.edge.tenant import Tenant
from kairos.router.request.outcome import Outcome
from support.metric_names import sample_names

README = (Path(kairos.router.__file__).parent / "README.md").read_text()


def test_the_flags_table_is_complete_and_has_the_defaults() -> None:
    rows = dict(re.findall(r"^\| `(--[a-z0-9-]+)[^`]*` \| ([^|]+) \|", README, re.MULTILINE))
    expected = {}
    for section, group in RouterConfig.groups().items():
        assert f"**{section}**" in README
        expected |= {s.flag: s.default_text for s in settings_of(group).values()}
    assert rows == expected


def test_every_outcome_and_status_is_explained() -> None:
    for outcome in Outcome:
        assert f"`{outcome.value}`" in README
    generate = document()["paths"]["/generate"]["post"]["responses"]
    for status in generate:
        assert status in README or status in ("4XX", "500", "529"), status


def test_every_endpoint_is_named() -> None:
    for path in document()["paths"]:
        assert path.replace("{worker}", "HOST:PORT").replace("{model}", "MODEL") in README


def test_the_keys_file_shown_is_understood(tmp_path: Path) -> None:
    from kairos.router.config.load import read_document
    from kairos.router.edge.tenant import parse_classes, parse_tenants
    from kairos.slo import Slo, SloClasses

    example = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1]
    path = tmp_path / "keys.yaml"
    path.write_text(example.replace("sha256:...", hash_key("k")))
    document = read_document(path, "")
    offered = parse_classes(document["classes"], SloClasses(Slo(1, 1)), "")
    [(tenant, keys)] = parse_tenants(document["tenants"], offered, "")
    assert (tenant.name, tenant.weight, keys) == ("shop", 2, [hash_key("k")])
    for name in settings_of(Tenant):
        assert name in README


def test_metrics_named_exist() -> None:
    names = sample_names()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    for name in re.findall(r"kairos_router_\w+", README):
        assert name in names | families or name == "kairos_router_"


def test_every_failure_of_the_survey_has_its_row() -> None:
    rows = [int(n) for n in re.findall(r"^\| (\d+)\. ", README, re.MULTILINE)]
    assert rows == list(range(1, 23))
