"""Documents against their rules and against the code that they describe."""

import dataclasses
import importlib
import json
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import kairos_patches
from kairos import slo
from kairos.latency import profile
from kairos.policy.admission import AdmissionDecision, AdmissionParams
from kairos.policy.preallocation import PreallocationParams
from kairos.policy.slack import SlackParams
from kairos.policy.urgency import UrgencyParams
from kairos.replay.client.record import RequestOutcome
from kairos.replay.plan.arms import ARMS
from kairos.router.edge.openapi import document
from kairos.router.request.outcome import Outcome
from kairos.sim.baselines.prefill import BASELINES
from kairos.workload.slo_sets import SLO_SETS
from kairos.workload.synthetic import generate, write_trace
from support.metric_names import sample_names

REPOSITORY = Path(kairos_patches.__file__).parent.parent
DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
ROOT_PAGES = [README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "SECURITY.md"]
PAGES = [*ROOT_PAGES, *sorted(DOCS.rglob("*.md"))]
LINKING = [
    *PAGES,
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "UPSTREAM_DIFF.md",
    *sorted((REPOSITORY / "python").rglob("README.md")),
]
# Pages of decisions and results have a form of their own.
QUESTIONS = [
    path for path in PAGES if path != README and not {"adr", "evaluation"} & set(path.parts)
]
CODE = re.compile(r"^( *)```.*?^\1```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
# Flags of SGLang, pip and systemctl that the documents name.
OTHER_FLAGS = {
    *("--all", "--now", "--allow-auto-truncate", "--dp-size"),
    *("--disable-overlap-schedule", "--enable-forward-pass-metrics"),
    *("--disaggregation-bootstrap-port", "--disaggregation-decode-allocation-policy"),
    *("--disaggregation-mode", "--enable-lora-overlap-loading", "--enable-metrics"),
    *("--enable-priority-scheduling", "--max-running-requests", "--model-path", "--tp-size"),
    *("--dp-size", "--sampling-defaults"),
}
RETIRED_WORDS = re.compile(
    r"\b(nobody|somebody|whoever|elders?|hopeless|victims?|parked|parking|in vain|at ease|"
    r"given up|so many|tau)\b",
    re.IGNORECASE,
)
MAX_COLUMNS = 100
README_LINES = 150


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def prose_of(path: Path) -> str:
    """The text of a page, its code emptied and its lines kept."""
    text = path.read_text(encoding="utf-8")
    return CODE.sub(lambda match: "\n" * match[0].count("\n"), text)


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def rows_of(page: str) -> Iterator[list[str]]:
    """Cells of the tables of a page."""
    for line in text_of(page).splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line[1:].rstrip().removesuffix("|").split("|")]


def anchors_of(path: Path) -> set[str]:
    """Anchors that the site and code hosts make of a page's headings."""
    headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in words}


@pytest.mark.parametrize("path", LINKING, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / posixpath.normpath(file) if file else path
        known = not anchor or target.suffix != ".md" or anchor in anchors_of(target)
        if not target.exists() or not known:
            broken.append(link)
    assert not broken


# The router's README is not yet of this width.
@pytest.mark.parametrize(
    "path", [path for path in LINKING if "router" not in path.parts], ids=name_of
)
def test_no_line_of_prose_is_too_long(path: Path) -> None:
    lines = enumerate(CODE.sub(code_kept_in_line, path.read_text(encoding="utf-8")).splitlines(), 1)
    long = [number for number, line in lines if len(line) > MAX_COLUMNS and line[:1] != "|"]
    assert not long


def code_kept_in_line(match: re.Match[str]) -> str:
    """A code block without its text; code within a line as it is."""
    return "\n" * match[0].count("\n") if "\n" in match[0] else match[0]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize(
    "path",
    [p for p in PAGES if not {"adr", "evaluation"} & set(p.parts) and p != README],
    ids=name_of,
)
def test_a_page_says_at_its_top_which_question_it_answers(path: Path) -> None:
    top = path.read_text(encoding="utf-8").splitlines()[:4]
    assert any(re.match(r"This (page|section) answers: ", line) for line in top)


@pytest.mark.parametrize("path", [README, *QUESTIONS], ids=name_of)
def test_prose_has_no_retired_word(path: Path) -> None:
    assert not RETIRED_WORDS.findall(prose_of(path))


@pytest.mark.parametrize("path", QUESTIONS, ids=name_of)
def test_files_that_a_page_names_exist(path: Path) -> None:
    named = re.findall(
        r"`([\w./-]+/[\w.-]*\.(?:py|yaml|json|md))`", path.read_text(encoding="utf-8")
    )
    named = [name for name in named if not name.startswith(("/", "out/"))]
    roots = (REPOSITORY, REPOSITORY / "python", REPOSITORY / "python/kairos_emulation")
    assert not [name for name in named if not any((root / name).exists() for root in roots)]


@pytest.mark.slow
def test_the_policy_of_the_guide_runs_in_the_simulator(tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", text_of("how-to/write-a-policy.md"), re.DOTALL)
    (tmp_path / "my_policy.py").write_text(program)
    write_trace(generate("mooncake-conversation", 100, 0), tmp_path / "trace.jsonl.gz")
    orders = ("--stages", "prefill", "--prefill-policy", "fcfs,density")
    command = [sys.executable, "my_policy.py", "--trace", "trace.jsonl.gz", "--json", "out.json"]
    subprocess.run([*command, *orders], cwd=tmp_path, check=True, capture_output=True)
    runs = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert [run["prefill_policy"] for run in runs] == ["fcfs", "density"]


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.svg")), ids=name_of)
def test_a_figure_is_small_and_complete_in_itself(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 200_000
    assert not re.findall(r'(?:href|src)="(?!#)[^"]+"|@import|url\((?!#)', text)


@pytest.mark.parametrize(
    ("page", "params"),
    [
        ("explanation/urgency.md", UrgencyParams()),
        ("explanation/slack.md", SlackParams()),
        ("explanation/preallocation.md", PreallocationParams()),
        ("explanation/admission.md", AdmissionParams()),
    ],
)
def test_parameters_are_described_with_their_defaults(page: str, params: object) -> None:
    shown = {row[0].strip("`"): row[2] for row in rows_of(page) if len(row) == 4}
    if dataclasses.is_dataclass(params):
        values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    else:
        values = params._asdict()
    for name, value in values.items():
        if isinstance(value, AdmissionDecision):
            assert shown[name] == value.value
        else:
            assert shown[name] == ("none" if value == float("inf") else f"{value:g}"), name


def test_every_way_to_state_an_slo_is_described() -> None:
    text = text_of("reference/http.md")
    for header in (*slo._OBJECTIVES, slo.CLASS_HEADER, slo.APPLIED_HEADER):
        assert f"`{header}`" in text
    for low, high in (slo.TTFT_RANGE_MS, slo.TPOT_RANGE_MS):
        assert f"| {low:g} to {high:,.0f} |" in text


def test_every_outcome_and_endpoint_of_the_router_is_described() -> None:
    text = text_of("reference/http.md")
    for outcome in Outcome:
        assert f"| `{outcome.value}` |" in text
    for path in document()["paths"]:
        assert path.replace("{worker}", "HOST:PORT").replace("{model}", "MODEL") in text


def test_every_field_of_a_latency_profile_is_described_with_its_bounds() -> None:
    rows = {row[0].strip("`"): row[2] for row in rows_of("reference/profiles.md") if len(row) == 4}
    for field, (low, high) in profile._RANGES.items():
        bounds = [
            float(number) for number in re.findall(r"[\d.e-]+", rows[field].replace("to", ""))
        ]
        assert bounds in ([low, high], [low]), field
    text = text_of("reference/profiles.md")
    for name in profile.builtin_profiles():
        assert f"| `{name}` |" in text


def test_every_name_that_measuring_knows_is_described() -> None:
    measuring, baselines = text_of("explanation/measuring.md"), text_of("explanation/baselines.md")
    for arm in ARMS:
        assert f"`{arm}`" in measuring
    for outcome in RequestOutcome:
        assert f"`{outcome.value}`" in measuring
    for name in BASELINES:
        assert f"`{name}`" in baselines
    for name in SLO_SETS:
        assert f"`{name}`" in text_of("reference/traces.md")


def test_the_tests_behind_the_invariants_exist() -> None:
    names = re.findall(r"`(test[\w/]*(?:\.py|/))`", text_of("invariants.md"))
    assert len(names) > 15
    folder = REPOSITORY
    for name in names:
        path = REPOSITORY / name if "/" in name else folder / name
        assert path.exists(), name
        folder = path.parent


@pytest.fixture
def make_reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    return importlib.import_module("make_reference")


def test_the_reference_holds_every_command_flag_and_metric(make_reference: ModuleType) -> None:
    commands = make_reference.cli()
    for command in ("router", "router key", "simulate", "replay", "replay compare", "calibrate"):
        assert f"## kairos {command}\n" in commands
    for flag in ("--binding", "--prefill-policy", "--slo-headers", "--emulated", "--stdin"):
        assert f"| `{flag}` |" in commands
    assert "| `--kairos-telemetry` |" in make_reference.engine_flags()
    for metric in make_reference.ENGINE_METRICS:
        assert f"`{metric.name}" in make_reference.engine_metrics()
    router = make_reference.router_metrics()
    for name in sample_names():
        assert f"`{re.sub(r'_(bucket|sum|count)$', '', name)}`" in router
    for section in make_reference.SECTIONS.values():
        assert section().startswith(("## ", "### ", "| "))


def test_flags_that_a_page_names_exist(make_reference: ModuleType) -> None:
    flag = re.compile(r"(?<![\w-])--[a-z][\w-]+")
    parts = ("cli", "engine_flags", "router_config")
    known = set(flag.findall("".join(make_reference.SECTIONS[part]() for part in parts)))
    named = {
        f"{name_of(path)}: {name}"
        for path in [README, *QUESTIONS]
        for name in flag.findall(path.read_text(encoding="utf-8"))
        if name not in known | OTHER_FLAGS
    }
    assert not named


def test_every_generated_part_is_shown_on_a_page(make_reference: ModuleType) -> None:
    shown = re.findall(r"<!-- generated: (\w+) -->", "".join(map(Path.read_text, PAGES)))
    assert sorted(shown) == sorted(make_reference.SECTIONS)
