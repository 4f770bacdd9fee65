"""Runs: their order, what is done, what is done again; folders side by side."""

import json
from pathlib import Path

import msgspec
import pytest

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.campaign import finished, runs_of
from kairos.replay.plan import Plan, make_plan
from kairos.replay.record import Quiet, read_records, write_records
from kairos.replay.results import check_comparable, read_arms
from kairos.workload.synthetic import generate
from support import replay_fake
from support.replay import header, record


def test_1_every_arm_once_before_any_again_and_the_order_turned_round() -> None:
    runs = runs_of(["a", "b", "c"], [0.5, 0.9], 2)
    assert [(r.arm, r.load, r.repeat) for r in runs] == [
        *(("a", 0.5, 1), ("b", 0.5, 1), ("c", 0.5, 1)),
        *(("c", 0.9, 1), ("b", 0.9, 1), ("a", 0.9, 1)),
        *(("a", 0.5, 2), ("b", 0.5, 2), ("c", 0.5, 2)),
        *(("c", 0.9, 2), ("b", 0.9, 2), ("a", 0.9, 2)),
    ]
    assert [r.position for r in runs] == list(range(1, 13))
    assert len({r.stem for r in runs}) == 12
    assert [r.stem for r in runs_of(["a"], [0.9], 2)] == ["a", "a.r2"]
    with pytest.raises(InputError, match="--repeats"):
        runs_of(["a"], [0.9], 0)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(generate("servegen-r1", 10, 0), load_profile("tiny-fast"), load=0.9)


def written(out: Path, plan: Plan, **changes: object) -> None:
    workload = plan.workload
    same = {
        "trace_sha256": workload.trace.sha256,
        "requests": len(plan.requests),
        "time_scale": workload.time_scale,
    }
    write_records(out / "requests-fcfs.jsonl", header(**(same | changes)), [record()])


def test_2_done_are_runs_of_the_same_plan_that_count(tmp_path: Path, plan: Plan) -> None:
    runs = runs_of(["fcfs", "kairos"], [0.9], 1)
    written(tmp_path, plan)
    assert list(finished(runs, {0.9: plan}, tmp_path)) == ["fcfs"]


@pytest.mark.parametrize(
    "trouble", [{"note": "decode-0 died"}, {"quiet": Quiet(problems=("loud",))}]
)
def test_3_others_are_set_aside_and_done_again(
    tmp_path: Path, plan: Plan, trouble: dict[str, object]
) -> None:
    written(tmp_path, plan, **trouble)
    assert finished(runs_of(["fcfs"], [0.9], 1), {0.9: plan}, tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["rejected-fcfs.jsonl"]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"slo_set": "F5"}, {"dilate": 2.0}, {"trace_sha256": "1" * 64}]
)
def test_4_records_of_another_replay_are_not_mixed_in(
    tmp_path: Path, plan: Plan, change: dict[str, object]
) -> None:
    written(tmp_path, plan, **change)
    with pytest.raises(InputError, match=r"--resume: .* is of another replay"):
        finished(runs_of(["fcfs"], [0.9], 1), {0.9: plan}, tmp_path)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    lines = [
        json.dumps({"arrival_s": 0.02 * i, "input_tokens": 900 + i, "output_tokens": 3})
        for i in range(12)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_5_a_campaign_goes_on_run_by_run(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--trace", str(trace), "--load", "1", "--repeats", "2", "--goodput", "none"]
    flags += ["--out", str(out), "--max-runs", "3"]
    assert replay_fake.replay(flags) == 0
    assert "1 runs are left" in capsys.readouterr().out
    assert replay_fake.replay(flags) == 2  # what is there is not overwritten
    assert "--resume keeps" in capsys.readouterr().err
    before = (out / "requests-fcfs.jsonl").read_bytes()
    assert replay_fake.replay([*flags, "--resume"]) == 0
    assert (out / "requests-fcfs.jsonl").read_bytes() == before
    positions = {path.name: read_records(path)[0].position for path in out.glob("requests-*.jsonl")}
    assert positions == {
        "requests-fcfs.jsonl": 1,
        "requests-kairos.jsonl": 2,
        "requests-kairos.r2.jsonl": 3,
        "requests-fcfs.r2.jsonl": 4,
    }
    report = json.loads((out / "report.json").read_text())
    assert report["arms"]["fcfs"]["runs"] == 2
    assert report["arms"]["fcfs"]["requests"] == 24
    assert list(report["gains"]) == ["kairos"]
    assert report["fidelity"]["fcfs"]["ttft_attainment"] is not None


def stored(folder: Path, arm: str, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"requests-{arm}.jsonl"
    write_records(path, header(arm, **changes), [record(i) for i in range(10)])
    return path


def test_6_folders_of_other_work_are_compared_by_force_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path / "a", "fcfs")
    stored(tmp_path / "b", "fcfs", seed=5)
    flags = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    assert replay_fake.replay(flags) == 2
    assert "a/fcfs and b/fcfs cannot be compared: seed is 0 and 5" in capsys.readouterr().err
    assert replay_fake.replay([*flags, "--force"]) == 0
    report = json.loads((tmp_path / "c" / "report.json").read_text())
    assert list(report["arms"]) == ["a/fcfs", "b/fcfs"]
    assert "seed is 0 and 5" in report["differences"][0]
    assert "Forced comparison" in (tmp_path / "c" / "report.html").read_text()


def test_7_a_report_can_be_written_from_records_alone(tmp_path: Path) -> None:
    stored(tmp_path, "fcfs")
    assert replay_fake.replay(["report", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["goodput"]["fcfs"]["in"] == "simulator"
    assert [found["target"] for found in report["goodput"]["fcfs"]["loads"]] == [90.0, 99.0]


def test_8_disturbed_runs_are_left_out_where_there_are_others(tmp_path: Path) -> None:
    good = stored(tmp_path, "fcfs")
    bad = tmp_path / "requests-fcfs.r2.jsonl"
    noisy = msgspec.structs.replace(header("fcfs"), repeat=2, quiet=Quiet(problems=("loud",)))
    write_records(bad, noisy, [record()])
    (arm,) = read_arms([good, bad])
    assert (len(arm.runs), arm.counts) == (1, True)
    (alone,) = read_arms([bad])
    assert not alone.counts
    assert alone.summary.note == "loud"


def test_9_runs_of_one_arm_must_agree_too(tmp_path: Path) -> None:
    one = stored(tmp_path / "a", "fcfs")
    two = stored(tmp_path / "b", "fcfs", tpot_ms=50.0)
    with pytest.raises(InputError, match=r"tpot_ms is 30\.0 and 50\.0"):
        check_comparable(read_arms([one, two]))


def test_10_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_fake.replay(["report", str(tmp_path)]) == 2
    assert "no requests-*.jsonl" in capsys.readouterr().err
