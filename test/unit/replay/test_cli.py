"""The command line of a replay on fake servers: files, exit codes and processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kairos.replay.client.record import RequestOutcome
from kairos.replay.run import session
from kairos.replay.run.record_file import read_records
from support import replay_fake
from support.processes import marked, new_mark, wait_none

TRACE = "".join(
    json.dumps({"arrival_s": 0.02 * i, "input_tokens": 2000, "output_tokens": 4}) + "\n"
    for i in range(12)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(TRACE)
    return path


@pytest.mark.slow
def test_two_arms_run_end_to_end(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mark = tmp_path / "out", new_mark()
    code = replay_fake.replay(
        ["--trace", str(trace), "--load", "1", "--slo", "F5", "--out", str(out)], mark
    )
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert wait_none(mark) == {}
    report = json.loads((out / "report.json").read_text())
    assert set(report["arms"]) == {"fcfs", "kairos"}
    for arm in report["arms"].values():
        assert (arm["requests"], arm["failures"], arm["ttft_attainment"]) == (12, 0, 100.0)
    assert {p.name for p in out.iterdir() if p.is_file()} == {
        "report.json",
        "report.html",
        "report.png",
        "deciles.png",
        "timeline.png",
        "requests-fcfs.jsonl",
        "requests-kairos.jsonl",
    }
    assert "TTFT attainment" in shown.out
    assert "report.html" in shown.out
    header, records = read_records(out / "requests-kairos.jsonl")
    assert "--kairos" in header.servers["prefill"]
    assert "--kairos" in header.servers["decode"]
    assert header.load == 1.0
    assert len(records) == 12


@pytest.mark.slow
def test_death_of_a_server_is_reported_and_cuts_the_rest(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = new_mark()
    flags = ["--trace", str(trace), "--load", "0.2", "--arms", "fcfs", "--out", str(tmp_path)]
    code = replay_fake.replay(
        flags,
        mark,
        ["--fake-die-after", "9"],  # four of them warm-up
    )
    assert code == 1
    assert wait_none(mark) == {}
    assert "decode-0 died" in capsys.readouterr().out
    summary = json.loads((tmp_path / "report.json").read_text())["arms"]["fcfs"]
    assert "decode-0 died" in summary["note"]
    assert summary["requests"] == 12
    assert 0 < summary["failures"] <= 7
    _, records = read_records(tmp_path / "requests-fcfs.jsonl")
    assert {r.outcome for r in records} <= {
        RequestOutcome.OK,
        RequestOutcome.CUT,
        RequestOutcome.CONNECTION_ERROR,
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_during_a_run_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The event loop is busy, so that the signal arrives between its steps."""
    mark, trace = new_mark(), tmp_path / "busy.jsonl"
    trace.write_text(TRACE.replace('"output_tokens": 4', '"output_tokens": 5000'))
    process = subprocess.Popen(
        [
            *(sys.executable, replay_fake.__file__, mark, "--fake-gap-s 0.002"),
            *("--trace", str(trace), "--load", "9", "--arms", "fcfs", "--out", str(tmp_path)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "ready" in line:
            break
    assert marked(mark)
    time.sleep(0.5)  # until tokens flow
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), errors
    assert "Traceback" not in errors
    assert wait_none(mark) == {}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--trace", "missing.jsonl"], "missing.jsonl: No such file"),
        (["--trace", "synthetic:nothing"], "preset 'nothing': allowed are"),
        (["--load", "0"], "load: 0.0 is out of range"),
        (["--load", "nan"], "load: nan is out of range"),
        (["--load", "much"], "argument --load: 'much' is neither a number"),
        (["--duration-s", "-1"], "duration-s: -1.0"),
        (["--slo", "L9"], "argument --slo: invalid choice"),
        (["--tpot-ms", "-3"], "--tpot-ms"),
        (["--arms", "fcfs,magic"], "--arms: 'magic' is not one of fcfs,"),
        (["--arms", "fcfs,fcfs"], "named twice"),
        (["--arms", ""], "--arms: ''"),
        (["--instances", "0P1D"], "--instances: '0P1D'"),
        (["--instances", "PD"], "must look like 1P1D"),
        (["--profile", "nothing"], "unknown profile 'nothing'"),
        (["--timeout-s", "0"], "--timeout-s"),
        (["--budget-s", "-5"], "--budget-s"),
        (["--url", "localhost"], "--url"),
        (["--url", "http://me:secret@127.0.0.1:1"], "OPENAI_API_KEY"),
        (["--url", "http://127.0.0.1:1", "--dilate", "2"], "--dilate: servers of --url"),
        (["--url", "http://127.0.0.1:1"], "no server answers at http://127.0.0.1:1"),
        (["--seed", "-1"], "seed"),
        (["--out", "/dev/null/x"], "--out: cannot write"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_two(
    flags: list[str], says: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = replay_fake.replay(["--trace", str(trace), "--out", str(tmp_path / "o"), *flags])
    shown = capsys.readouterr()
    assert code == 2
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("replay: ")


@pytest.mark.slow
def test_run_of_a_late_client_does_not_count(
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exit code and the report still show it after the run was made again."""
    flags = ["--trace", str(trace), "--load", "0.5", "--arms", "fcfs", "--goodput", "none"]
    flags += ["--out", str(tmp_path)]
    with monkeypatch.context() as late:
        late.setattr(session, "GenerateApi", replay_fake.LateApi)
        assert replay_fake.replay(flags, allow_disturbed=False) == 3
    assert "fcfs at load 0.5: NOT VALID: client's send lag p99" in capsys.readouterr().out
    header, records = read_records(tmp_path / "requests-fcfs.jsonl")
    assert not header.counts
    assert all(r.send_lag_ms >= 1e3 * replay_fake.LATE_S for r in records)
    page = (tmp_path / "report.html").read_text()
    assert "fcfs at load 0.5 is not valid:" in page
    assert "allowed are 5" in page

    assert replay_fake.replay([*flags, "--resume"]) == 3
    shown = capsys.readouterr().out
    assert "fcfs at load 0.5, run 1: NOT VALID, left out: client's send lag p99" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["arms"]["fcfs"]["requests"] == len(records)
    (lost,) = report["left_out"]["fcfs"]
    assert lost["started"] == header.started
    assert "client's send lag p99" in lost["quiet"]["problems"][0]
