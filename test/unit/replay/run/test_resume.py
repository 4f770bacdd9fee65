"""Runs that are done, and runs that are made again."""

from pathlib import Path

import pytest

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.client.api import Api, CompletionsApi, GenerateApi
from kairos.replay.client.job import ClientConfig
from kairos.replay.plan.campaign import runs_of
from kairos.replay.plan.plan import PlanConfig
from kairos.replay.plan.plans import Plans
from kairos.replay.run import resume
from kairos.replay.run.header import RunHeader
from kairos.replay.run.interference import InterferenceReport
from kairos.replay.run.record_file import write_records
from kairos.replay.run.resume import finished
from kairos.workload.synthetic import generate
from support.replay import header, record, run_config


@pytest.fixture(scope="module")
def plans() -> Plans:
    trace = generate("servegen-r1", 10, 0)
    return Plans(trace, load_profile("tiny-fast"), PlanConfig(load=0.9))


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


def test_finished_runs_are_those_of_the_same_plan_that_count(tmp_path: Path, plans: Plans) -> None:
    runs = runs_of(["fcfs", "kairos"], [0.9], 1)
    written(tmp_path, plans)
    assert list(finished(runs, plans, run_config(tmp_path))) == ["fcfs"]


@pytest.mark.parametrize(
    "trouble", [{"note": "decode-0 died"}, {"interference": InterferenceReport(problems=("loud",))}]
)
def test_runs_that_do_not_count_are_set_aside_and_made_again(
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
def test_records_of_another_replay_are_refused(
    tmp_path: Path, plans: Plans, change: dict[str, object]
) -> None:
    written(tmp_path, plans, **change)
    with pytest.raises(InputError, match=r"--resume: .* is of another replay"):
        finished(runs_of(["fcfs"], [0.9], 1), plans, run_config(tmp_path))


def test_records_of_another_endpoint_model_or_format_are_refused(
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


def test_records_of_another_commit_are_refused_unless_forced(
    tmp_path: Path, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "git_commit", lambda: "new")
    runs = runs_of(["fcfs"], [0.9], 1)
    written(tmp_path, plans, git_commit="old")
    with pytest.raises(InputError, match="commit old, this is new; --force"):
        finished(runs, plans, run_config(tmp_path))
    assert len(finished(runs, plans, run_config(tmp_path), force=True)) == 1
