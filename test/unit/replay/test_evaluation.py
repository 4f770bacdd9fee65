"""The evaluation: records, tables, plots and pages."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

import kairos_patches
from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.client.record import RequestOutcome
from kairos.replay.evaluation import study
from kairos.replay.evaluation.cli import main
from kairos.replay.evaluation.columns import SIMULATED_COLUMNS
from kairos.replay.evaluation.details import engine_details, simulated_details
from kairos.replay.evaluation.pages import rendered
from kairos.replay.evaluation.plots import PLOTS
from kairos.replay.evaluation.records import (
    EngineRecord,
    Records,
    SimulatedRecord,
    engine_record,
    without_repetition,
)
from kairos.replay.evaluation.series import best_upstream
from kairos.replay.evaluation.study import SimulationStudy, simulate_trace
from kairos.replay.evaluation.tables import table
from kairos.replay.report.model import Extras
from kairos.replay.report.writer import write_report
from kairos.replay.run.forwards import DeviceReport
from kairos.workload.synthetic import generate
from support.replay import arm, record

DOCS = Path(kairos_patches.__file__).parent.parent / "docs"
LARGEST_PLOT = 60_000  # bytes


def figures(e2e: float, tokens: float = 100.0) -> dict[str, float]:
    found = {column.name: 50.0 for column in SIMULATED_COLUMNS}
    return found | {"e2e_attainment": e2e, "tokens_per_busy_s": tokens}


def kept(folder: Path) -> EngineRecord:
    """The report of a folder as the evaluation keeps it."""
    report = json.loads((folder / "report.json").read_text())
    return engine_record("mine", json.dumps(without_repetition(report)).encode())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the pages and records, which a test may change."""
    shutil.copytree(DOCS / "evaluation", tmp_path / "evaluation")
    shutil.copytree(DOCS / "records", tmp_path / "records")
    return tmp_path


def test_committed_pages_and_plots_are_what_the_records_give(copy: Path) -> None:
    assert main(["render"], copy) == 0
    for path in rendered(copy):
        committed = DOCS / path.relative_to(copy)
        assert path.read_bytes() == committed.read_bytes(), f"{committed}: run evaluate.py render"


def test_pages_without_their_tables_are_filled_and_reported_as_stale(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copy / "evaluation" / "memory.md"
    full = page.read_text()
    page.write_text(full.replace("88.0 (", "98.0 ("))
    (copy / "evaluation" / "plots" / "fidelity.svg").unlink()
    assert main(["render", "--check"], copy) == 1
    stale = capsys.readouterr().err
    assert "memory.md" in stale
    assert "fidelity.svg" in stale
    assert "headline.md" not in stale
    assert "98.0 (" in page.read_text()
    assert main(["render"], copy) == 0
    assert page.read_text() == full
    assert main(["render", "--check"], copy) == 0


def test_every_plot_is_small_labelled_and_shown_on_a_page() -> None:
    pages = "".join(page.read_text() for page in (DOCS / "evaluation").glob("*.md"))
    for name in PLOTS:
        svg = (DOCS / "evaluation" / "plots" / name).read_text()
        assert len(svg.encode()) < LARGEST_PLOT
        assert f"plots/{name}" in pages
        assert any(kind in svg.lower() for kind in ("emulated", "simulated", "measured"))


def test_generated_paragraphs_stay_within_the_column_limit() -> None:
    for page in (*(DOCS / "evaluation").glob("*.md"), *(DOCS / "adr").glob("*.md")):
        long = [
            line
            for line in page.read_text().splitlines()
            if len(line) > 100 and not line.startswith("|")
        ]
        assert not long, page


def test_every_record_is_shown() -> None:
    records = Records(DOCS / "records")
    shown = (DOCS / "evaluation" / "all-figures.md").read_text()
    assert all(f"### {name} (" in shown for name in records.engine)
    assert all(f"### {one.label} (simulated)" in shown for one in records.simulated.values())


def test_gains_are_over_fcfs_and_over_the_best_upstream_arm() -> None:
    arms = {
        "fcfs": figures(20.0),
        "sjf": figures(80.0, 125.0),
        "kairos": figures(95.0, 120.0),
        "kairos-hold": figures(99.0),
    }
    assert best_upstream({name: own["e2e_attainment"] for name, own in arms.items()}) == "sjf"
    found = SimulatedRecord(
        label="T", trace="t.gz", sha256="0", requests=10, slo_set="L3", tpot_ms=30.0, profile="p",
        git_commit="", stage="prefill", baseline_load=0.4,
        loads={"0.4": arms, "0.9": arms, "1.1": arms}, goodput={"fcfs": 0.2, "kairos": 1.0},
    )  # fmt: skip
    text = simulated_details(found)
    assert "| 0.9 | kairos | fcfs | +0.0 | +0.0 | +75.0 | +20 % | +0 % |" in text
    assert "| 0.9 | kairos | sjf | +0.0 | +0.0 | +15.0 | -4 % | +0 % |" in text
    assert "(simulated)" in text
    assert "kairos 1.00" in text
    assert "FCFS meets both SLOs for at least 60 % of the requests: 20.0 %." in text


@pytest.mark.slow
def test_small_trace_is_simulated_at_every_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "LOADS", (0.9, 1.1))
    monkeypatch.setattr(study, "UPSTREAM", ("fcfs", "sjf"))
    monkeypatch.setattr(study, "SEARCHED", ("fcfs",))
    found = simulate_trace(
        SimulationStudy("T", 120, "L3", 30.0),
        generate("mooncake-conversation", 150, 0),
        load_profile("minimax-m2.5-tp4-h200"),
        "",
    )
    assert found.requests == 120
    assert found.prefill_load is not None
    assert 0.0 < found.prefill_load <= 1.0
    assert found.prefill_load == 1.0 or found.stage == "decode"
    assert set(found.loads["0.9"]) == {"fcfs", "sjf", *study.KAIROS}
    assert found.loads["1.1"]["fcfs"]["ttft_attainment"] <= 100.0
    assert "0.9" in simulated_details(found)


def test_kept_report_has_its_figures_and_intervals(tmp_path: Path) -> None:
    fast = [record(i, [0.1, 0.12]) for i in range(10)]
    write_report([arm("fcfs", fast), arm("kairos", fast)], tmp_path)
    text = engine_details("mine", kept(tmp_path))
    assert "### mine (emulated)" in text
    assert "100.0 (33.1–100.0)" in text


def test_each_load_states_its_requests_and_each_class_its_attainment(tmp_path: Path) -> None:
    classes = ("batch", "interactive")
    own = [record(i, [0.1 + i % 2, 0.12 + i % 2], slo_class=classes[i % 2]) for i in range(10)]
    lost = [record(0, [], RequestOutcome.TIMEOUT, slo_class="batch"), *own[1:]]
    arms = [
        arm(name, records, load=load, requests=10, span_s=load * 20.0)
        for load in (0.7, 0.9)
        for name, records in (("fcfs", lost), ("kairos", own))
    ]
    write_report(arms, tmp_path)
    text = engine_details("mine", kept(tmp_path))
    assert "Load 0.7, 10 requests in 14 s:" in text
    assert "Load 0.9, 10 requests in 18 s:" in text
    assert "| kairos | 100.0 / 100.0 / 100.0 | 0.0 / 100.0 / 0.0 |" in text
    assert "| fcfs | 1.10 | – |" in text  # one was never served: no 99th percentile


def test_kept_report_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    write_report([arm("fcfs", [record(i, [0.1, 0.12]) for i in range(10)])], tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    (header,) = report["headers"]["fcfs"]
    header["command"] = ["replay.py", "--trace", "/home/somebody/trace.jsonl.gz"]
    header["servers"] = {"prefill": ["--model-path", "/tmp/models/emulated", "--port", "1"]}
    (own,) = without_repetition(report)["headers"]["fcfs"]
    assert own["command"] == ["replay.py", "--trace", "trace.jsonl.gz"]
    assert own["servers"] == {"prefill": ["--model-path", "emulated", "--port", "1"]}


def test_keep_refuses_a_file_that_is_no_report(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text('{"emulated": true}')
    assert main(["keep", str(tmp_path), "--name", "15-mine"], copy) == 2
    assert "not a report.json of this version" in capsys.readouterr().err
    assert not (copy / "records" / "engine-15-mine.json").exists()


def test_keep_names_the_folder_that_lacks_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keep", str(tmp_path), "--name", "15-mine"], tmp_path) == 2
    assert "report.json is missing; give the folder that replay.py" in capsys.readouterr().err


def test_gains_goodput_and_fidelity_of_an_engine_record(tmp_path: Path) -> None:
    fast = [record(i, [0.1, 0.12]) for i in range(10)]
    half = [record(i, [0.1 if i % 2 else 0.9, 0.12 if i % 2 else 0.92]) for i in range(10)]
    device = DeviceReport(
        prefill_busy_percent=50.0, decode_busy_percent=50.0, decode_tokens_per_busy_s=100.0,
        decode_batch_mean=2.0, prefill_batches=3,
    )  # fmt: skip
    faster = msgspec.structs.replace(device, decode_tokens_per_busy_s=120.0)
    arms = [arm("fcfs", half, device=device), arm("kairos", fast, device=faster)]
    found = {
        "in": "simulator",
        "loads": [
            {"target": 90.0, "load": 4.0, "misses_at": None},
            {"target": 99.0, "load": 1.25, "misses_at": 1.3},
        ],
    }
    points = {"ttft_attainment": 1.0, "tpot_attainment": 0.0, "e2e_attainment": -2.0}
    extras = Extras({}, {0.9: {"kairos": points}}, {"kairos": found, "x": found | {"loads": None}})
    write_report(arms, tmp_path, extras)
    text = engine_details("m", kept(tmp_path))
    assert "| 0.9 | kairos | fcfs | +50.0 | +0.0 | +50.0 | +20 % |" in text
    assert "Goodput, largest load with 90 % e2e, simulator: kairos 4.00 or more." in text
    assert "Goodput, largest load with 99 % e2e, simulator: kairos 1.25." in text
    assert "points of TTFT / TPOT / e2e: kairos +1.0 / +0.0 / -2.0" in text


def test_every_upstream_order_is_simulated() -> None:
    assert {"fcfs", "lpm", "hrrn", "sjf"} <= set(study.UPSTREAM)
    assert best_upstream({"kairos": 99.0}) == ""


@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("nothing", "table 'nothing' is unknown, allowed are engine, "),
        ("engine", "engine takes 1 to 2 arguments"),
        ("engine 99-none", "engine record '99-none' is missing, there are: 1-mooncake, "),
        ("simulated 99-none", "simulated record '99-none' is missing"),
        ("engine 3-decode 0.5", "load '0.5': the record has 0.1111, 0.1457"),
        ("engine 3-decode", "load '': the record has 0.1111, 0.1457"),
        ("engine 8-memory 0.5", "load '0.5': the record has one load only"),
    ],
)
def test_unknown_table_record_or_load_is_named_with_what_is_allowed(
    request_text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        table(Records(DOCS / "records"), request_text)


def test_table_without_its_end_comment_is_reported(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copy / "evaluation" / "memory.md"
    page.write_text(page.read_text().replace("<!-- end of table -->", ""))
    assert main(["render"], copy) == 2
    assert "memory.md: a table lacks its comment" in capsys.readouterr().err
