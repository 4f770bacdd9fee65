"""The goodput search on an engine: its probes, and the runs that it uses."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from kairos.errors import InputError
from kairos.replay import cli, commands
from kairos.replay.client.record import ReceivedTokens, make_record
from kairos.replay.plan.campaign import ReplayRun
from kairos.replay.plan.plan import Plan
from kairos.replay.report.engine_goodput import EngineGoodput
from kairos.replay.run import session
from kairos.replay.run.config import RunConfig
from kairos.replay.run.header import RunHeader
from kairos.replay.run.options import ReplayOptions
from kairos.replay.run.record_file import write_records
from kairos.replay.run.session import ReplaySession
from support.replay import header

EDGE = 1.2


class Engine:
    """Writes the records of a run at once: all SLOs met up to a load of EDGE.

    Attributes:
        made: stems of the runs, in order.
        dies: how often each stem's servers die before a run counts.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self.dies: dict[str, int] = {}

    def __call__(self, config: RunConfig, run: ReplayRun, plan: Plan, *_: object) -> RunHeader:
        self.made.append(run.stem)
        workload = plan.workload
        dead = self.made.count(run.stem) <= self.dies.get(run.stem, 0)
        head = header(
            run.arm, repeat=run.repeat, position=run.position, load=run.load,
            trace_sha256=workload.trace.sha256, time_scale=workload.time_scale,
            requests=len(plan.requests), profile=config.profile,
            timeout_s=config.client.timeout_s, budget_s=config.client.budget_s,
            note="decode-0 died" if dead else "",
        )  # fmt: skip
        late = dead or run.load > EDGE or run.stem.endswith(".r2")
        records = [
            make_record(
                p, f"r{p.index}", "ok", received=ReceivedTokens(times_s=[99.0 if late else 0.001])
            )
            for p in plan.requests
        ]
        write_records(run.records(config.out), head, records)
        return head


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(session, "run_on_cluster", engine)
    return engine


def session_in(out: Path, *flags: str) -> ReplaySession:
    trace = out / "trace.jsonl"
    lines = [
        json.dumps({"arrival_s": 0.5 * i, "input_tokens": 900 + i, "output_tokens": 1})
        for i in range(12)
    ]
    trace.write_text("\n".join(lines) + "\n")
    options = parsed(out, *flags)
    return ReplaySession(options, (), lambda _: None, Console())


def parsed(out: Path, *flags: str) -> ReplayOptions:
    return cli.parse_options(
        [
            "--trace",
            str(out / "trace.jsonl"),
            "--arms",
            "fcfs",
            "--goodput",
            "engine",
            "--out",
            str(out),
            *flags,
        ]
    )


def searched(out: Path, *flags: str) -> dict:
    one = session_in(out, *flags)
    for run in one.todo():
        one.run(run)
    return EngineGoodput(one).results()["fcfs"]


def test_probes_that_do_not_count_are_made_again(tmp_path: Path, engine: Engine) -> None:
    engine.dies = {"fcfs@1.8": 1}
    found = searched(tmp_path)
    assert engine.made[:3] == ["fcfs", "fcfs@1.8", "fcfs@1.8"]
    assert found["loads"][0]["load"] <= EDGE < found["loads"][0]["misses_at"]
    assert [path.name for path in tmp_path.glob("rejected-*")] == ["rejected-fcfs@1.8.1.jsonl"]


def test_probe_that_never_counts_leaves_no_result(tmp_path: Path, engine: Engine) -> None:
    engine.dies = {"fcfs@1.8": 99}
    assert searched(tmp_path)["loads"] is None
    assert engine.made == ["fcfs", *["fcfs@1.8"] * 3]


def test_known_load_that_did_not_count_is_not_used(tmp_path: Path, engine: Engine) -> None:
    engine.dies = {"fcfs": 1}
    found = searched(tmp_path)
    assert found["loads"][0]["load"] == pytest.approx(EDGE, rel=0.06)


def test_repeats_are_pooled(tmp_path: Path, engine: Engine) -> None:
    """All requests of the first run meet their SLOs, and none of the second."""
    found = searched(tmp_path, "--repeats", "2")
    assert found["loads"][0]["probes"]["0.9"] == 50.0


def test_old_probes_are_replaced_or_refused(tmp_path: Path, engine: Engine) -> None:
    searched(tmp_path)
    made = list(engine.made)
    (tmp_path / "requests-fcfs.jsonl").unlink()
    with pytest.raises(InputError, match="--overwrite replaces"):
        session_in(tmp_path).todo()
    session_in(tmp_path, "--overwrite").todo()
    assert list(tmp_path.glob("requests-*")) == []
    engine.made.clear()
    searched(tmp_path, "--overwrite")
    assert engine.made == made


def test_bad_limit_of_runs_deletes_no_records(tmp_path: Path, engine: Engine) -> None:
    searched(tmp_path)
    records = sorted(tmp_path.glob("requests-*"))
    options = parsed(tmp_path, "--overwrite", "--max-runs", "0")
    with pytest.raises(InputError, match="--max-runs: 0"):
        commands.replay(options, (), lambda _: None)
    assert sorted(tmp_path.glob("requests-*")) == records


def test_limit_of_runs_holds_for_probes(tmp_path: Path, engine: Engine) -> None:
    one = session_in(tmp_path)
    one.run(*one.todo())
    search = EngineGoodput(one, max_probes=1)
    assert search.results()["fcfs"]["loads"] is None
    assert (len(engine.made), search.cut_short) == (2, True)
    again = EngineGoodput(session_in(tmp_path, "--resume"), max_probes=99)
    assert again.results()["fcfs"]["loads"][0]["load"] == pytest.approx(EDGE, rel=0.06)
    assert again.cut_short is False
    assert engine.made.count("fcfs@1.8") == 1


def test_dilation_stretches_budget_and_timeout(tmp_path: Path) -> None:
    one = session_in(tmp_path, "--budget-s", "100", "--timeout-s", "50", "--dilate", "2")
    assert one.config.client.budget_s == 200.0
    assert one.config.client.timeout_s == 100.0
