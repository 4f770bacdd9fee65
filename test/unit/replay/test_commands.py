"""Reports and comparisons of record folders, and campaigns made in parts."""

import json
from pathlib import Path

import pytest

from kairos.errors import InputError
from kairos.replay.commands import labels
from kairos.replay.run.interference import InterferenceReport
from kairos.replay.run.record_file import read_records, write_records
from support import replay_fake
from support.replay import header, record, stored


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
def test_campaign_continues_run_by_run(
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


def test_folders_of_other_work_are_compared_only_by_force(
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


def test_report_can_be_written_from_records_alone(tmp_path: Path) -> None:
    stored(tmp_path, "fcfs")
    assert replay_fake.replay(["report", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["goodput"]["fcfs"]["in"] == "simulator"
    assert [found["target"] for found in report["goodput"]["fcfs"]["loads"]] == [90.0, 99.0]


def test_folder_without_records_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay_fake.replay(["report", str(tmp_path)]) == 2
    assert "no requests-*.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trouble", "code"),
    [({"note": "decode-0 died"}, 1), ({"interference": InterferenceReport(problems=("loud",))}, 3)],
)
@pytest.mark.parametrize("name", ["requests-fcfs.r2.jsonl", "rejected-fcfs.1.jsonl"])
def test_runs_left_out_or_made_again_are_reported(
    tmp_path: Path,
    trouble: dict[str, object],
    code: int,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An arm whose servers die sometimes must not look like an arm whose servers never die."""
    stored(tmp_path, "fcfs")
    write_records(tmp_path / name, header("fcfs", repeat=2, **trouble), [record()])
    assert replay_fake.replay(["report", str(tmp_path), "--goodput", "none"]) == code
    assert "fcfs at load 0.9, run 2: NOT VALID, left out" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["arms"]["fcfs"]["runs"], len(report["left_out"]["fcfs"])) == (1, 1)


def test_labels_tell_folders_of_one_name_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    assert labels(folders) == ["a/x/", "b/x/"]
    assert labels([tmp_path / "a", tmp_path / "b"]) == ["a/", "b/"]
    assert labels(folders[:1]) == [""]
    with pytest.raises(InputError, match="named twice"):
        labels([folders[0], folders[0] / ".." / "x"])


def test_runs_with_unlike_numbers_of_records_give_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path, "fcfs")
    write_records(tmp_path / "requests-fcfs.r2.jsonl", header("fcfs", repeat=2), [record()])
    assert replay_fake.replay(["report", str(tmp_path), "--force"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
