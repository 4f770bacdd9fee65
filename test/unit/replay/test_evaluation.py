"""The evaluation's tables."""

import json
from pathlib import Path

import msgspec
import pytest

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.client.record import RequestOutcome
from kairos.replay.report import evaluation
from kairos.replay.report.evaluation import (
    SHOWN,
    Simulated,
    best_upstream,
    engine_markdown,
    kept,
    simulated,
    simulated_markdown,
)
from kairos.replay.report.model import Extras
from kairos.replay.report.writer import write_report
from kairos.replay.run.forwards import DeviceReport
from kairos.workload.synthetic import generate
from support.replay import arm, record


def figures(e2e: float, tokens: float = 100.0) -> dict[str, float]:
    found = {name: 50.0 for name, _, _ in SHOWN}
    return found | {"e2e_attainment": e2e, "tokens_per_busy_s": tokens}


def test_1_the_paper_s_table_compares_with_fcfs_and_the_best_of_upstream() -> None:
    arms = {
        "fcfs": figures(20.0),
        "sjf": figures(80.0, 125.0),
        "kairos": figures(95.0, 120.0),
        "kairos-hold": figures(99.0),
    }
    assert best_upstream(arms) == "sjf"
    found = Simulated(
        label="T", trace="t.gz", sha256="0", requests=10, slo_set="L3", tpot_ms=30.0, profile="p",
        git_commit="", stage="prefill", baseline_load=0.4,
        loads={"0.4": arms, "0.9": arms, "1.1": arms}, goodput={"fcfs": 0.2, "kairos": 1.0},
    )  # fmt: skip
    text = simulated_markdown(found)
    assert "| 0.9 | kairos | fcfs | +0.0 | +0.0 | +75.0 | +20 % | +0 % |" in text
    assert "| 0.9 | kairos | sjf | +0.0 | +0.0 | +15.0 | -4 % | +0 % |" in text
    assert "(simulated)" in text
    assert "kairos 1.00" in text
    assert "FCFS meets both SLOs for at least 60 % of the requests: 20.0 %." in text


@pytest.mark.slow
def test_2_a_small_trace_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LOADS", (0.9, 1.1))
    monkeypatch.setattr(evaluation, "UPSTREAM", ("fcfs", "sjf"))
    monkeypatch.setattr(evaluation, "SEARCHED", ("fcfs",))
    found = simulated(
        "T", generate("mooncake-conversation", 150, 0), load_profile("minimax-m2.5-tp4-h200"),
        requests=120, slo_set="L3", tpot_ms=30.0, git_commit="",
    )  # fmt: skip
    assert found.requests == 120
    assert found.prefill_load is not None
    assert 0.0 < found.prefill_load <= 1.0
    assert found.prefill_load == 1.0 or found.stage == "decode"
    assert set(found.loads["0.9"]) == {"fcfs", "sjf", *evaluation.KAIROS}
    assert found.loads["1.1"]["fcfs"]["ttft_attainment"] <= 100.0
    assert "0.9" in simulated_markdown(found)


def test_3_a_kept_report_renders(tmp_path: Path) -> None:
    fast = [record(i, [0.1, 0.12]) for i in range(10)]
    write_report([arm("fcfs", fast), arm("kairos", fast)], tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    text = engine_markdown("mine", json.loads(json.dumps(kept(report))))
    assert "### mine (emulated)" in text
    assert "100.0 (33.1–100.0)" in text


def test_3a_each_load_says_its_work_and_each_class_its_attainment(tmp_path: Path) -> None:
    classes = ("batch", "interactive")
    own = [record(i, [0.1 + i % 2, 0.12 + i % 2], slo_class=classes[i % 2]) for i in range(10)]
    lost = [record(0, [], RequestOutcome.TIMEOUT, slo_class="batch"), *own[1:]]
    arms = [
        arm(name, records, load=load, requests=10, span_s=load * 20.0)
        for load in (0.7, 0.9)
        for name, records in (("fcfs", lost), ("kairos", own))
    ]
    write_report(arms, tmp_path)
    text = engine_markdown("mine", kept(json.loads((tmp_path / "report.json").read_text())))
    assert "Load 0.7, 10 requests in 14 s:" in text
    assert "Load 0.9, 10 requests in 18 s:" in text
    assert "| kairos | 100.0 / 100.0 / 100.0 | 0.0 / 100.0 / 0.0 |" in text
    assert "| fcfs | 1.10 | – |" in text  # one was never served: no 99th percentile


def test_3b_a_kept_report_names_no_folder_of_the_machine_it_was_made_on(tmp_path: Path) -> None:
    write_report([arm("fcfs", [record(i, [0.1, 0.12]) for i in range(10)])], tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    (header,) = report["headers"]["fcfs"]
    header["command"] = ["replay.py", "--trace", "/home/somebody/trace.jsonl.gz"]
    header["servers"] = {"prefill": ["--model-path", "/tmp/models/emulated", "--port", "1"]}
    (own,) = kept(report)["headers"]["fcfs"]
    assert own["command"] == ["replay.py", "--trace", "trace.jsonl.gz"]
    assert own["servers"] == {"prefill": ["--model-path", "emulated", "--port", "1"]}


def test_4_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="mine: not a report"):
        engine_markdown("mine", {"emulated": True})


def test_5_an_engine_s_gains_goodput_and_fidelity(tmp_path: Path) -> None:
    fast = [record(i, [0.1, 0.12]) for i in range(10)]
    half = [record(i, [0.1 if i % 2 else 0.9, 0.12 if i % 2 else 0.92]) for i in range(10)]
    device = DeviceReport(
        prefill_busy_percent=50.0, decode_busy_percent=50.0, decode_tokens_per_busy_s=100.0,
        decode_batch_mean=2.0, prefill_batches=3,
    )  # fmt: skip
    arms = [
        arm("fcfs", half, device=device),
        arm("kairos", fast, device=msgspec.structs.replace(device, decode_tokens_per_busy_s=120.0)),
    ]
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
    text = engine_markdown("m", kept(json.loads((tmp_path / "report.json").read_text())))
    assert "| 0.9 | kairos | fcfs | +50.0 | +0.0 | +50.0 | +20 % |" in text
    assert "Goodput, largest load with 90 % e2e, simulator: kairos 4.00 or more." in text
    assert "Goodput, largest load with 99 % e2e, simulator: kairos 1.25." in text
    assert "points of TTFT / TPOT / e2e: kairos +1.0 / +0.0 / -2.0" in text


def test_6_every_order_of_upstream_is_in_the_tables() -> None:
    assert {"fcfs", "lpm", "hrrn", "sjf"} <= set(evaluation.UPSTREAM)
    assert best_upstream({"kairos": figures(99.0)}) == ""
