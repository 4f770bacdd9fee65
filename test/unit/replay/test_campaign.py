"""Runs: their order, what is done, what is done again; folders side by side."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from kairos.cluster import ServerDiedError
from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.client.api import Api, CompletionsApi, GenerateApi
from kairos.replay.client.job import ClientConfig
from kairos.replay.client.record import RequestOutcome
from kairos.replay.client.target import UrlTarget
from kairos.replay.commands import labels
from kairos.replay.plan.campaign import runs_of
from kairos.replay.plan.plan import PlanConfig
from kairos.replay.plan.plans import Plans
from kairos.replay.report.results import check_comparable, read_arms
from kairos.replay.run import resume
from kairos.replay.run.config import RunConfig
from kairos.replay.run.header import RunHeader
from kairos.replay.run.interference import InterferenceReport
from kairos.replay.run.record_file import read_records, write_records
from kairos.replay.run.resume import finished
from kairos.replay.run.runner import content_seed, last_check
from kairos.replay.run.servers import RunServers
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
def plans() -> Plans:
    trace = generate("servegen-r1", 10, 0)
    return Plans(trace, load_profile("tiny-fast"), PlanConfig(load=0.9))


def run_config(out: Path, **changes: object) -> RunConfig:
    fields: dict[str, object] = {
        "instances": "1P1D",
        "profile": load_profile("tiny-fast"),
        "url": None,
        "client": ClientConfig(),
        "out": out,
        "command": (),
        "allow_disturbed": False,
        "console": Console(),
    }
    return RunConfig(**(fields | changes))


def written(out: Path, plans: Plans, **changes: object) -> None:
    plan = plans.at(0.9)
    workload = plan.workload
    same = {
        "trace_sha256": workload.trace.sha256,
        "requests": len(plan.requests),
        "time_scale": workload.time_scale,
        "timeout_s": ClientConfig().timeout_s,
        "budget_s": ClientConfig().budget_s,
    }
    write_records(out / "requests-fcfs.jsonl", header(**(same | changes)), [record()])


def test_2_done_are_runs_of_the_same_plan_that_count(tmp_path: Path, plans: Plans) -> None:
    runs = runs_of(["fcfs", "kairos"], [0.9], 1)
    written(tmp_path, plans)
    assert list(finished(runs, plans, run_config(tmp_path))) == ["fcfs"]


@pytest.mark.parametrize(
    "trouble", [{"note": "decode-0 died"}, {"interference": InterferenceReport(problems=("loud",))}]
)
def test_3_others_are_set_aside_and_done_again(
    tmp_path: Path, plans: Plans, trouble: dict[str, object]
) -> None:
    for _ in range(2):
        written(tmp_path, plans, **trouble)
        assert finished(runs_of(["fcfs"], [0.9], 1), plans, run_config(tmp_path)) == {}
    names = ["rejected-fcfs.1.jsonl", "rejected-fcfs.2.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": 1}, {"slo_set": "F5"}, {"dilate": 2.0}, {"trace_sha256": "1" * 64}),
        *({"start_s": 60.0}, {"instances": "2P1D"}, {"emulated": False}),
        *({"timeout_s": 5.0}, {"budget_s": 5.0}, {"mini_lb": True}),
        {"profile": load_profile("minimax-m2.5-tp4-h200")},
    ],
)
def test_4_records_of_another_replay_are_not_mixed_in(
    tmp_path: Path, plans: Plans, change: dict[str, object]
) -> None:
    written(tmp_path, plans, **change)
    with pytest.raises(InputError, match=r"--resume: .* is of another replay"):
        finished(runs_of(["fcfs"], [0.9], 1), plans, run_config(tmp_path))


def test_4a_nor_are_those_of_another_endpoint_or_model_or_way_to_ask(
    tmp_path: Path, plans: Plans
) -> None:
    def done(url: str, api: Api) -> dict[str, RunHeader]:
        own = run_config(tmp_path, url=url, client=ClientConfig(api=api))
        return finished(runs_of(["fcfs"], [0.9], 1), plans, own)

    servers = {
        "client sends to": ["http://h:1"],
        "API": ["/v1/completions"],
        "model": ["m"],
        "SLO headers": ["kairos"],
        "state": ["as found"],
    }
    written(tmp_path, plans, emulated=False, servers=servers)
    assert len(done("http://h:1", CompletionsApi("m"))) == 1
    others: list[tuple[str, Api]] = [
        ("http://h:2", CompletionsApi("m")),
        ("http://h:1", CompletionsApi("n")),
        ("http://h:1", CompletionsApi("m", "x-slo")),
        ("http://h:1", GenerateApi()),
    ]
    for url, api in others:
        with pytest.raises(InputError, match="is of another replay"):
            done(url, api)


def test_4b_nor_of_another_commit_unless_forced(
    tmp_path: Path, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "git_commit", lambda: "new")
    runs = runs_of(["fcfs"], [0.9], 1)
    written(tmp_path, plans, git_commit="old")
    with pytest.raises(InputError, match="commit old, this is new; --force"):
        finished(runs, plans, run_config(tmp_path))
    assert len(finished(runs, plans, run_config(tmp_path), force=True)) == 1


def test_4c_servers_that_keep_their_cache_get_other_prompts_each_run(
    tmp_path: Path, plans: Plans
) -> None:
    plan = plans.at(0.9)
    assert content_seed(run_config(tmp_path), plan) == plan.config.seed
    there = run_config(tmp_path, url="http://h:1")
    assert len({content_seed(there, plan) for _ in range(9)} | {plan.config.seed}) == 10


def test_4d_a_server_that_dies_with_the_last_request_is_noticed() -> None:
    """Its connections break first; its process is gone a moment later."""

    def dying() -> Callable[[], None]:
        calls = iter([None] * 3)

        def check() -> None:
            if next(calls, "dead"):
                raise ServerDiedError("decode-0", 1, Path("none.log"), "serving")

        return check

    good, broken = record(0), record(1, [], RequestOutcome.CONNECTION_ERROR)
    assert last_check([good, broken], servers(dying())).startswith("decode-0 died")
    assert last_check([good], servers(dying())) == ""
    assert last_check([broken], servers(lambda: None), within_s=0.01) == ""


def servers(check: Callable[[], None]) -> RunServers:
    return RunServers(UrlTarget("http://h:1"), {}, send_slo=True, check=check)


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
    noisy = msgspec.structs.replace(
        header("fcfs"), repeat=2, interference=InterferenceReport(problems=("loud",))
    )
    write_records(bad, noisy, [record()])
    (arm,) = read_arms([good, bad])
    assert (len(arm.runs), arm.counts) == (1, True)
    assert [h.interference.problems for h in arm.left_out] == [("loud",)]
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


@pytest.mark.parametrize(
    ("trouble", "code"),
    [({"note": "decode-0 died"}, 1), ({"interference": InterferenceReport(problems=("loud",))}, 3)],
)
@pytest.mark.parametrize("name", ["requests-fcfs.r2.jsonl", "rejected-fcfs.1.jsonl"])
def test_11_runs_left_out_or_made_again_are_reported(
    tmp_path: Path,
    trouble: dict[str, object],
    code: int,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Otherwise an arm whose servers die now and then would look like one whose servers do not."""
    stored(tmp_path, "fcfs")
    write_records(tmp_path / name, header("fcfs", repeat=2, **trouble), [record()])
    assert replay_fake.replay(["report", str(tmp_path), "--goodput", "none"]) == code
    assert "fcfs at load 0.9, run 2: NOT VALID, left out" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["arms"]["fcfs"]["runs"], len(report["left_out"]["fcfs"])) == (1, 1)


def test_12_a_run_that_was_not_made_again_yet_is_shown(tmp_path: Path) -> None:
    one = stored(tmp_path, "fcfs")
    lost = tmp_path / "rejected-kairos.1.jsonl"
    write_records(lost, header("kairos", position=2, note="decode-0 died"), [record()])
    arms = read_arms([one], rejected=[lost])
    assert [(arm.name, arm.counts) for arm in arms] == [("fcfs", True), ("kairos", False)]


def test_13_the_baseline_is_the_same_at_every_load(tmp_path: Path) -> None:
    """Arms take turns in going first, which must not decide what gains are measured against."""
    paths = []
    for i, run in enumerate(runs_of(["fcfs", "kairos"], [0.7, 0.9], 1)):
        path = tmp_path / f"requests-{i}.jsonl"
        write_records(path, header(run.arm, load=run.load, position=run.position), [record()])
        paths.append(path)
    arms = read_arms(sorted(paths, reverse=True))
    assert [(arm.header.load, arm.name) for arm in arms] == [
        *((0.7, "fcfs"), (0.7, "kairos"), (0.9, "fcfs"), (0.9, "kairos")),
    ]


def test_14_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    assert labels(folders) == ["a/x/", "b/x/"]
    assert labels([tmp_path / "a", tmp_path / "b"]) == ["a/", "b/"]
    assert labels(folders[:1]) == [""]
    with pytest.raises(InputError, match="named twice"):
        labels([folders[0], folders[0] / ".." / "x"])


def test_15_runs_of_unlike_length_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path, "fcfs")
    write_records(tmp_path / "requests-fcfs.r2.jsonl", header("fcfs", repeat=2), [record()])
    assert replay_fake.replay(["report", str(tmp_path), "--force"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
