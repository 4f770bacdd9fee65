"""Runs read back from their records, arm by arm."""

from pathlib import Path

import msgspec
import pytest

from kairos.errors import InputError
from kairos.replay.plan.campaign import runs_of
from kairos.replay.report.results import check_comparable, read_arms
from kairos.replay.run.interference import InterferenceReport
from kairos.replay.run.record_file import write_records
from support.replay import header, record, stored


def test_disturbed_runs_are_left_out_if_others_count(tmp_path: Path) -> None:
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


def test_runs_of_one_arm_must_have_the_same_work(tmp_path: Path) -> None:
    one = stored(tmp_path / "a", "fcfs")
    two = stored(tmp_path / "b", "fcfs", tpot_ms=50.0)
    with pytest.raises(InputError, match=r"tpot_ms is 30\.0 and 50\.0"):
        check_comparable(read_arms([one, two]))


def test_rejected_run_is_shown_until_it_is_made_again(tmp_path: Path) -> None:
    one = stored(tmp_path, "fcfs")
    lost = tmp_path / "rejected-kairos.1.jsonl"
    write_records(lost, header("kairos", position=2, note="decode-0 died"), [record()])
    arms = read_arms([one], rejected=[lost])
    assert [(arm.name, arm.counts) for arm in arms] == [("fcfs", True), ("kairos", False)]


def test_baseline_is_the_same_arm_at_every_load(tmp_path: Path) -> None:
    """Arms take turns at the first position, which must not change the baseline of gains."""
    paths = []
    for i, run in enumerate(runs_of(["fcfs", "kairos"], [0.7, 0.9], 1)):
        path = tmp_path / f"requests-{i}.jsonl"
        write_records(path, header(run.arm, load=run.load, position=run.position), [record()])
        paths.append(path)
    arms = read_arms(sorted(paths, reverse=True))
    assert [(arm.header.load, arm.name) for arm in arms] == [
        *((0.7, "fcfs"), (0.7, "kairos"), (0.9, "fcfs"), (0.9, "kairos")),
    ]
